"""Rows of a split as arrays: taken, and put one after another, without a Python loop over them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trec_semid.core.arrays import Array
from trec_semid.data.ragged import Ragged


class RankingRows(NamedTuple):
    """Rows of one split with their histories under one protocol. N rows."""

    users: Array
    """(N,) integers."""
    items: Array
    """(N,) integers."""
    labels: Array
    """(N,) float32."""
    histories: Ragged | None
    numbers: Array | None = None
    """(N,) int64 places among the events of the split; None where they are 0, 1, ..."""

    def take(self, chosen: Array) -> "RankingRows":
        """Return (n,) rows in this order, whose histories share no memory with these."""
        histories = None
        if self.histories is not None:
            values, lengths = self.histories.take(chosen)
            histories = Ragged(np.cumsum(lengths) - lengths, lengths, values)
        return RankingRows(
            self.users[chosen], self.items[chosen], self.labels[chosen], histories, self.numbers_of(chosen)
        )

    def numbers_of(self, chosen: Array) -> Array:
        """Return (n,) places among the events of the split."""
        return chosen if self.numbers is None else self.numbers[chosen]


def no_rows(*, with_histories: bool) -> RankingRows:
    """Return rows of which there are none."""
    none = np.zeros(0, np.int64)
    histories = Ragged(none, none, none) if with_histories else None
    return RankingRows(none, none, np.zeros(0, np.float32), histories, none)


def joined(parts: Sequence[RankingRows]) -> RankingRows:
    """Return the rows of parts, all of one split and protocol, one part after another."""
    if len(parts) == 1:
        return parts[0]
    lists = [part.histories for part in parts if part.histories is not None]
    sizes = np.cumsum([0, *(len(each.values) for each in lists)])
    histories = None
    if lists:
        histories = Ragged(
            np.concatenate([each.starts + size for each, size in zip(lists, sizes, strict=False)]),
            np.concatenate([each.lengths for each in lists]),
            np.concatenate([each.values for each in lists]),
        )
    return RankingRows(
        np.concatenate([part.users for part in parts]),
        np.concatenate([part.items for part in parts]),
        np.concatenate([part.labels for part in parts]),
        histories,
        np.concatenate([part.numbers_of(np.arange(len(part.labels))) for part in parts]),
    )
