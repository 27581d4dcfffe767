"""Items of one tuple told apart by a code of one more position: each takes the lowest that is free.

Legend: n new items, m items that are there, G different tuples among the new.
"""

import numpy as np

from trec_semid.core.arrays import Array, Ints
from trec_semid.core.hashing import Hashes


def free_slots(keys: Hashes, taken_keys: Hashes, taken: Array) -> Ints:
    """Give the j-th new item of each tuple the j-th slot that no item of this tuple has.

    With the slots of a tuple in order, t_0 < t_1 < ..., there are t_i - i free ones below the i-th. So the
    j-th free slot, from 0, is j + |{i : t_i - i <= j}|.

    Args:
        keys: (n,) of the new items' tuples, as `core.hashing.tuple_keys` has them.
        taken_keys: (m,) likewise, of all items that are there or that were removed.
        taken: (m,) their slots.

    Returns:
        (n,) slots, in the order of rows within a tuple.
    """
    tuples, group = np.unique(keys, return_inverse=True)
    rank = _rank_within(group)
    if not len(tuples):
        return rank
    at = np.minimum(np.searchsorted(tuples, taken_keys), len(tuples) - 1)
    here = tuples[at] == taken_keys  # few of the many items share a tuple with a new one
    pairs = np.unique(np.stack([at[here], taken[here].astype(np.int64)], axis=1), axis=0)
    of, slots = pairs[:, 0], pairs[:, 1]
    starts = np.searchsorted(of, np.arange(len(tuples)))
    free_below = slots - (np.arange(len(of)) - starts[of])
    width = 1 + max(int(rank.max()), int(free_below.max(initial=0)))
    passed = np.searchsorted(of * width + free_below, group * width + rank, side="right") - starts[group]
    return rank + passed


def _rank_within(group: Ints) -> Ints:
    """Return 0, 1, 2, ... to the (n,) rows of each group, in row order."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    starts = np.searchsorted(ordered, ordered)
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - starts
    return rank
