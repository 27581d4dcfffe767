"""What sorted packed rows say of each user: its rows of both classes, and its pairs in the right order.

Legend: U users.
"""

from typing import NamedTuple

import numpy as np

from trec_semid.core.arrays import Floats, Ints
from trec_semid.metrics.keys import USER_SHIFT, Keys, in_threads

_BLOCK_ROWS = 1 << 15
"""Rows counted at a time, or one user's where that is more, so that work stays in the processor's cache."""


class PairCounts(NamedTuple):
    """Rows and (negative, positive) pairs of each user."""

    users: Ints
    """(U,) ascending."""
    negatives: Ints
    positives: Ints
    doubled_credit: Ints
    """(U,) 2 for every pair in the right order, 1 for every tie: twice the Mann-Whitney U, exactly."""

    @property
    def auc(self) -> Floats:
        """(U,) share of pairs in the right order, ties one half; NaN where a class is absent."""
        pairs = self.negatives * self.positives
        return np.where(pairs > 0, self.doubled_credit / (2.0 * np.maximum(pairs, 1)), np.nan)


def count_pairs(keys: Keys) -> PairCounts:
    """Count the rows and pairs of every user of sorted keys, in integers: exact below 4.2e9 rows."""
    at = np.arange(_BLOCK_ROWS, len(keys), _BLOCK_ROWS)
    # Cuts go back to where a user begins, so that no block holds a part of one.
    user_starts = np.searchsorted(keys, keys[at] >> USER_SHIFT << USER_SHIFT)
    cuts = np.unique(np.concatenate(([0], user_starts, [len(keys)])))
    blocks = in_threads(lambda block: _count_block(keys[cuts[block] : cuts[block + 1]]), range(len(cuts) - 1))
    if not blocks:
        none = np.empty(0, np.int64)
        return PairCounts(none, none, none, none)
    return PairCounts(*(np.concatenate(columns) for columns in zip(*blocks, strict=True)))


def _count_block(keys: Keys) -> PairCounts:
    """Count whole users.

    A positive at position i with j positives before it has i - j negatives before it. Inside a tie
    negatives come first, so that counts tied pairs in full; a tie of a negatives and b positives
    gives back a * b halves.
    """
    # Neighbours: 0 where all is equal, 1 where only the label differs, a bit from USER_SHIFT on where the
    # user does.
    change = keys[1:] ^ keys[:-1]
    starts = np.concatenate(([0], np.flatnonzero(change >= np.uint64(1) << USER_SHIFT) + 1))
    bounds = np.append(starts, len(keys))
    at_positive = np.flatnonzero(keys & np.uint64(1))
    positive_bounds = np.searchsorted(at_positive, bounds)
    negatives_before = at_positive - np.arange(len(at_positive))
    positives = np.diff(positive_bounds)
    credit = np.diff(_running_sum(negatives_before)[positive_bounds])
    credit -= (starts - positive_bounds[:-1]) * positives  # negatives of the users before
    doubled = 2 * credit - _tied_pairs(change, bounds)
    users = (keys[starts] >> USER_SHIFT).astype(np.int64)
    return PairCounts(users, np.diff(bounds) - positives, positives, doubled)


def _tied_pairs(change: Keys, bounds: Ints) -> Ints:
    """Return per user the number of (negative, positive) pairs of equal score."""
    at_change = np.flatnonzero(change)
    mixed = np.flatnonzero(change[at_change] == 1)  # where only the label differs: inside a tie
    around = np.concatenate(([-1], at_change, [len(change)]))
    # The stretch of negatives before the label changes, times that of positives after it.
    tied = (around[mixed + 1] - around[mixed]) * (around[mixed + 2] - around[mixed + 1])
    return np.diff(_running_sum(tied)[np.searchsorted(at_change[mixed], bounds)])


def _running_sum(values: Ints) -> Ints:
    total = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=total[1:])
    return total
