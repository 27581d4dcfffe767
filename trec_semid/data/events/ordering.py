"""One sequence of all events, and what happens to events of equal time."""

from typing import Literal

import numpy as np

from trec_semid.core.arrays import Array, Ints
from trec_semid.core.seeds import numpy_generator

TieRule = Literal["shuffled", "published"]


def sort_events(
    times: Ints | None, positions: Ints | None, num_events: int, ties: TieRule, seed: int
) -> Ints:
    """Return (n,) event indices in the one order that everything downstream uses.

    Events are sorted by time, or by position in the user's sequence where there are no times. Equal keys
    are shuffled with the seed, so that nothing in the order of a file (logs are often written rating by
    rating, or item by item) leaks into a split, or stay in the published order: by position where both
    are known, then by row in the source.

    Args:
        times: (n,) or None.
        positions: (n,) or None; one of the two is there.
        num_events: n.
        ties: what to do with equal keys.
        seed: of the shuffle.
    """
    keys = positions if times is None else times
    assert keys is not None, "the config asks for one of both"
    if ties == "shuffled":
        first = numpy_generator(seed, "ties").permutation(num_events)
    elif times is not None and positions is not None:
        first = stable_argsort(positions)
    else:
        return stable_argsort(keys)
    return first[stable_argsort(keys[first])]


def stable_argsort(keys: Array) -> Ints:
    """Return (n,) `np.argsort(keys, kind="stable")` of integers, several times faster.

    Key and index are packed into one integer, which makes all keys different, so that the fast unstable
    sort will do; where they do not fit into 63 bits, numpy's stable sort is used.
    """
    if len(keys) == 0:
        return np.zeros(0, np.int64)
    offsets = keys.astype(np.int64) - int(keys.min())
    index_bits = len(keys).bit_length()
    if int(offsets.max()).bit_length() + index_bits > 63 or int(offsets.min()) < 0:  # or it overflowed
        return np.argsort(keys, kind="stable")
    offsets <<= index_bits
    offsets |= np.arange(len(keys))
    offsets.sort()
    offsets &= (1 << index_bits) - 1
    return offsets


def count_ties(users: Array, times: Ints, by_user: Ints) -> int:
    """Return how many events share their user and time with another event.

    Args:
        users: (n,) user of every event, in order.
        times: (n,) its time, not decreasing.
        by_user: (n,) stable argsort of `users`.
    """
    users, times = users[by_user], times[by_user]
    equal = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    tied = np.zeros(len(users), bool)
    tied[1:] |= equal
    tied[:-1] |= equal
    return int(tied.sum())


def tie_rule(ties: TieRule, seed: int, *, has_times: bool) -> str:
    """Return the rule in words, as `dataset.json` keeps it."""
    if not has_times:
        return "ties unknown"
    if ties == "published":
        return "equal timestamps keep the published order"
    return f"equal timestamps shuffled with seed {seed}"
