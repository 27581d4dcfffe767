"""Recall and NDCG of full-catalogue retrieval, from the ranks of each user's targets (`target_ranks`).

Legend: U users, T targets of all users (user after user), N cutoff.
"""

from collections.abc import Sequence

import numpy as np

from trec_semid.core.arrays import Array, Floats, Ints
from trec_semid.core.errors import ShapeError


def recall_at(ranks: Ints, lengths: Ints, cutoff: int) -> Floats:
    """Return (U,): the share of each user's targets among the first `cutoff`, NaN without targets.

    With one target a user it is the hit rate of leave-one-out.

    Args:
        ranks: (T,) from 1.
        lengths: (U,) targets of each user.
        cutoff: N.
    """
    _expect_total(ranks, lengths)
    return _per_user(ranks <= cutoff, lengths) / _or_nan(lengths)


def ndcg_at(ranks: Ints, lengths: Ints, cutoff: int) -> Floats:
    """Return (U,): DCG@N / ideal DCG@N with gain 1 a target, NaN without targets.

    DCG@N = sum over targets of rank r <= N of 1 / log2(r + 1); the ideal has min(N, number of targets)
    of them on the first places. Source: Jarvelin and Kekalainen, "Cumulated Gain-Based Evaluation of IR
    Techniques", 2002. ComiRec's evaluator divides by the ideal of the hits alone, so its NDCG is larger.

    Args:
        ranks: (T,) from 1, no two of a user alike.
        lengths: (U,) targets of each user.
        cutoff: N.
    """
    _expect_total(ranks, lengths)
    gains = np.where(ranks <= cutoff, 1 / np.log2(ranks + 1.0), 0.0)
    discounts = np.concatenate(([0.0], np.cumsum(1 / np.log2(np.arange(cutoff) + 2.0))))
    return _per_user(gains, lengths) / _or_nan(discounts[np.minimum(lengths, cutoff)])


def per_user_retrieval(ranks: Ints, lengths: Ints, cutoffs: Sequence[int]) -> dict[str, Floats]:
    """Return `recall@N` and `ndcg@N` of every user for each cutoff."""
    recalls = {f"recall@{cutoff}": recall_at(ranks, lengths, cutoff) for cutoff in cutoffs}
    return recalls | {f"ndcg@{cutoff}": ndcg_at(ranks, lengths, cutoff) for cutoff in cutoffs}


def _per_user(values: Array, lengths: Ints) -> Floats:
    users = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(users, values.astype(np.float64), len(lengths)).astype(np.float64)


def _or_nan(values: Array) -> Floats:
    return np.where(values > 0, values, np.nan)


def _expect_total(ranks: Ints, lengths: Ints) -> None:
    if len(ranks) != lengths.sum():
        raise ShapeError(f"ranks: {len(ranks)} targets, but lengths sum up to {lengths.sum()}.")
