"""Recall and NDCG of lists of the whole catalogue, and their reach.

Recall and NDCG are taken from where each user's targets stand (`target_positions`). Reach is what share of
the catalogue is in anyone's list, and what none has: facts that a run, a bundle and a report hold alike, and
that `search.reach` comes to.

Legend: U users, T targets of all users (user after user), N cutoff; B lists, n items of one, I items of the
catalogue.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from pydantic import NonNegativeInt

from trec_semid.core.arrays import Array, Floats, Int32s, Ints
from trec_semid.core.config import Config
from trec_semid.core.errors import ShapeError

REACH = "reach.json"
"""In the folder of a run."""
Reason = Literal["duplicate", "blank", "no_path", "missed"]
"""Why lists lack an item:

duplicate   as many others of the very same score stand before it, whoever asks
blank       the same, and nothing is known of it: a vector of zeros, or no code of any position
no_path     no walk of the index leads to it
missed      exact lists of some users have it, and the search that is in use lists it for none of them
"""
CERTAIN: frozenset[Reason] = frozenset(("duplicate", "blank", "no_path"))
"""Those that hold for any user; `missed` is of the users that were asked for."""
_NOWHERE = np.iinfo(np.int32).max


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


class Absent(Config):
    """Items that lists lack, for one reason."""

    reason: Reason
    search: str
    """How these lists are made."""
    counts: dict[int, NonNegativeInt]
    """By length of the list."""
    examples: tuple[str, ...]
    """Ids of the first few of the longest list."""


class ReachFacts(Config):
    """How far lists reach into the catalogue."""

    num_items: NonNegativeInt
    """I."""
    num_users: NonNegativeInt
    """Whose lists were made."""
    listed: dict[int, float]
    """Length of the list -> share of the catalogue that is in anyone's."""
    absent: tuple[Absent, ...] = ()
    """Only what there is any of."""

    def hidden(self, cutoff: int) -> float:
        """Return the share of the catalogue that stands behind so many items of the very same score."""
        behind = [each.counts[cutoff] for each in self.absent if each.reason in ("duplicate", "blank")]
        return sum(behind) / max(self.num_items, 1)


def best_places(items: Array, num_items: int) -> Int32s:
    """Return (I,) the best place, from 1, that each item has in lists (B, n); a large number without any.

    Args:
        items: item rows, best first; -1 after the last.
        num_items: I.
    """
    places = np.full(num_items, _NOWHERE, np.int32)
    user, place = np.nonzero(items >= 0)
    np.minimum.at(places, items[user, place], (place + 1).astype(np.int32))
    return places


def shares_listed(places: Int32s, cutoffs: Iterable[int]) -> dict[int, float]:
    """Return the share of the catalogue that is in anyone's first so many items, of `best_places` (I,)."""
    return {cutoff: float((places <= cutoff).mean()) for cutoff in cutoffs}


def _per_user(values: Array, lengths: Ints) -> Floats:
    users = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(users, values.astype(np.float64), len(lengths)).astype(np.float64)


def _or_nan(values: Array) -> Floats:
    return np.where(values > 0, values, np.nan)


def _expect_total(positions: Ints, lengths: Ints) -> None:
    if len(positions) != lengths.sum():
        raise ShapeError(f"positions: {len(positions)} targets, but lengths sum up to {lengths.sum()}.")
