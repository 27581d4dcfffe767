"""Plain batches: (values, lengths) per feature, no torchrec.

Legend: B rows of this rank's part of the batch, F features. B is the same on every rank, as row-wise
shards want it: a rank with one row less carries a padding row, which has no ids and weight 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trec_semid.core.arrays import Array
from trec_semid.data.item_rows import ItemRows


class Jagged(NamedTuple):
    """Ids of one or more features over the same rows, feature by feature (torchrec's KJT layout)."""

    keys: tuple[str, ...]
    values: Tensor
    """(sum of lengths,) int64: all ids of feature 0, then feature 1, ..."""
    lengths: Tensor
    """(F * B,) int32: rows of feature 0, then feature 1, ..."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Jagged":
        """Copy to a device."""
        return Jagged(
            self.keys,
            self.values.to(device, non_blocking=non_blocking),
            self.lengths.to(device, non_blocking=non_blocking),
        )

    def pinned(self) -> "Jagged":
        """Copy into page-locked memory."""
        return Jagged(self.keys, self.values.pin_memory(), self.lengths.pin_memory())


class Rows(NamedTuple):
    """Whose rows a batch has, those of padding left out; they stay on the host. b rows."""

    users: Array
    """(b,) user rows."""
    items: Array
    """(b,) item rows."""


class RankingBatch(NamedTuple):
    """One rank's rows of one global batch."""

    features: Jagged
    labels: Tensor
    """(B,) float32; 0 for a padding row."""
    weights: Tensor
    """(B,) float32: 1, or 0 for a padding row."""
    rows: Tensor
    """(B,) int64: positions in the split's events, for joining predictions back; -1 for padding."""
    of: Rows
    global_size: int
    """Real rows of this batch over all ranks; the loss is the mean over these."""
    items: ItemRows | None = None
    """Targets and histories by distinct item, for a tokenizer in the loop; `features` has no codes then."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "RankingBatch":
        """Copy to a device."""
        return RankingBatch(
            self.features.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.weights.to(device, non_blocking=non_blocking),
            self.rows.to(device, non_blocking=non_blocking),
            self.of,
            self.global_size,
            self.items and self.items.to(device, non_blocking=non_blocking),
        )

    def pinned(self) -> "RankingBatch":
        """Copy into page-locked memory, from which a GPU copies without blocking."""
        return RankingBatch(
            self.features.pinned(),
            self.labels.pin_memory(),
            self.weights.pin_memory(),
            self.rows.pin_memory(),
            self.of,
            self.global_size,
            self.items and self.items.pinned(),
        )
