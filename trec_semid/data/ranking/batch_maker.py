"""Batches of any ranking rows that lie in memory, without a Python loop over rows."""

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch

from trec_semid.core.arrays import Array
from trec_semid.data.batches import Jagged, RankingBatch, Rows
from trec_semid.data.features import Feature, Sources
from trec_semid.data.item_rows import ItemRows, find_item_rows
from trec_semid.data.ranking.row_features import Bags, Entities, RowFeatures
from trec_semid.data.ranking.rows import RankingRows

_OF_CODES = frozenset(("item_code", "history_code", "item_prefix", "history_prefix"))


class DistinctItems(NamedTuple):
    """Asks for a batch's items by row instead of their codes, for a tokenizer in the loop."""

    num_recent: int | None
    """History entries of a row, most recent first, that come as distinct items; None for all."""


@final
class BatchMaker:
    """Makes the features of any rows of one split."""

    def __init__(
        self,
        rows: RankingRows,
        features: Sequence[Feature],
        sources: Sources,
        *,
        distinct_items: DistinctItems | None = None,
        pinned: bool = False,
    ) -> None:
        self.rows, self._pinned, self._distinct_items = rows, pinned, distinct_items
        self._sources = sources._replace(codes=None, prefixes=None) if distinct_items else sources
        # What depends on codes is computed from the codes that the tokenizer chooses in the step.
        is_left_out = _OF_CODES if distinct_items else frozenset[str]()
        self._described = tuple(features)
        self._features = tuple(feature for feature in features if feature.role not in is_left_out)
        self._keys = tuple(feature.name for feature in self._features)
        self._row_features = RowFeatures(self._features, self._sources)

    def make(self, chosen: Array, global_size: int, num_padding: int = 0) -> RankingBatch:
        """Return the batch of (b,) row numbers, in their order, and padding rows after them."""
        parts = self._parts(chosen)
        padding = np.zeros(num_padding, np.int32)
        lengths = [piece for _, lengths in parts for piece in (lengths, padding)]
        batch = RankingBatch(
            Jagged(
                self._keys,
                torch.from_numpy(np.concatenate([ids for ids, _ in parts], dtype=np.int64)),
                torch.from_numpy(np.concatenate(lengths, dtype=np.int32, casting="unsafe")),
            ),
            torch.from_numpy(np.append(self.rows.labels[chosen], padding).astype(np.float32)),
            torch.from_numpy(np.repeat(np.array([1, 0], np.float32), [len(chosen), num_padding])),
            # Padding is row -1, with weight 0 above.
            torch.from_numpy(np.append(self.rows.numbers_of(chosen), padding - 1)),
            Rows(self.rows.users[chosen], self.rows.items[chosen]),
            global_size,
            self._items(chosen, num_padding),
        )
        return batch.pinned() if self._pinned else batch

    def make_part(self, rows: Array, rank: int, world_size: int) -> RankingBatch:
        """Return a rank's part of the global batch of (B,) rows, padded to the longest part."""
        part = part_of(rows, rank, world_size)
        return self.make(part, len(rows), -(-len(rows) // world_size) - len(part))

    def mean_lengths(self) -> dict[str, float]:
        """Return the average number of ids of each feature, which table placement depends on.

        Of those as well that a tokenizer in the loop adds.
        """
        sizes: dict[str, float] = {}
        for feature in self._described:
            field = self._sources.fields.get(feature.name)
            histories = self.rows.histories if feature.entity == "history" else None
            lengths = field.lengths if field else histories.lengths if histories else np.ones(1)
            sizes[feature.name] = float(np.mean(lengths))
        return sizes

    def _items(self, chosen: Array, num_padding: int) -> ItemRows | None:
        if self._distinct_items is None:
            return None
        histories = self.rows.histories
        none = np.zeros(0, np.int64), np.zeros(len(chosen), np.int64)
        history, lengths = none if histories is None else histories.take(chosen)
        return find_item_rows(
            self.rows.items[chosen],
            history,
            lengths,
            num_recent=self._distinct_items.num_recent,
            num_padding=num_padding,
        )

    def _parts(self, chosen: Array) -> list[Bags]:
        """Return (ids, lengths) of each feature."""
        one_each = np.ones(len(chosen), np.int64)
        histories = self.rows.histories
        return self._row_features.of(
            Entities(
                (self.rows.users[chosen], one_each),
                (self.rows.items[chosen], one_each),
                None if histories is None else histories.take(chosen),
            )
        )


def part_of(rows: Array, rank: int, world_size: int) -> Array:
    """Return a rank's contiguous part of (B,) rows; sizes differ by one at most, earlier ranks have more."""
    size, longer = divmod(len(rows), world_size)
    start = rank * size + min(rank, longer)
    return rows[start : start + size + (rank < longer)]
