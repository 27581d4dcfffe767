"""Recall and NDCG of full-catalogue retrieval, from where each user's targets stand (`target_positions`).

Legend: U users, T targets of all users (user after user), N cutoff.
"""

from collections.abc import Sequence

import numpy as np

from trec_semid.core.arrays import Array, Floats, Ints
from trec_semid.core.errors import ShapeError


def recall_at(positions: Ints, lengths: Ints, cutoff: int) -> Floats:
    """Return (U,): the share of each user's targets among the first `cutoff`, NaN without targets.

    With one target a user it is the hit rate of leave-one-out.

    Args:
        positions: (T,) from 1.
        lengths: (U,) targets of each user.
        cutoff: N.
    """
    _expect_total(positions, lengths)
    return _per_user(positions <= cutoff, lengths) / _or_nan(lengths)


def ndcg_at(positions: Ints, lengths: Ints, cutoff: int) -> Floats:
    """Return (U,): DCG@N / ideal DCG@N with gain 1 a target, NaN without targets.

    DCG@N = sum over targets of position r <= N of 1 / log2(r + 1); the ideal has min(N, number of targets)
    of them on the first places. Source: Jarvelin and Kekalainen, "Cumulated Gain-Based Evaluation of IR
    Techniques", 2002. ComiRec's evaluator divides by the ideal of the hits alone, so its NDCG is larger.

    Args:
        positions: (T,) from 1, no two of a user alike.
        lengths: (U,) targets of each user.
        cutoff: N.
    """
    _expect_total(positions, lengths)
    gains = np.where(positions <= cutoff, 1 / np.log2(positions + 1.0), 0.0)
    # Entry m: the DCG of m targets on the first m places.
    discounts = np.concatenate(([0.0], np.cumsum(1 / np.log2(np.arange(cutoff) + 2.0))))
    return _per_user(gains, lengths) / _or_nan(discounts[np.minimum(lengths, cutoff)])


def per_user_retrieval(positions: Ints, lengths: Ints, cutoffs: Sequence[int]) -> dict[str, Floats]:
    """Return `recall@N` and `ndcg@N` of every user for each cutoff, each (U,), NaN without targets.

    Args:
        positions: (T,) from 1.
        lengths: (U,) targets of each user.
        cutoffs: each N.
    """
    recalls = {f"recall@{cutoff}": recall_at(positions, lengths, cutoff) for cutoff in cutoffs}
    return recalls | {f"ndcg@{cutoff}": ndcg_at(positions, lengths, cutoff) for cutoff in cutoffs}


def _per_user(values: Array, lengths: Ints) -> Floats:
    users = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(users, values.astype(np.float64), len(lengths)).astype(np.float64)


def _or_nan(values: Array) -> Floats:
    return np.where(values > 0, values, np.nan)


def _expect_total(positions: Ints, lengths: Ints) -> None:
    if len(positions) != lengths.sum():
        raise ShapeError(f"positions: {len(positions)} targets, but lengths sum up to {lengths.sum()}.")
