"""Plain batches: (values, lengths) per feature, no torchrec.

Legend: B rows of this rank's part of the batch, F features.
"""

from typing import NamedTuple

import torch
from torch import Tensor


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


class RankingBatch(NamedTuple):
    """One rank's rows of one global batch."""

    features: Jagged
    labels: Tensor
    """(B,) float32."""
    rows: Tensor
    """(B,) int64: positions in the split's events, for joining predictions back."""
    global_size: int
    """Rows of this batch over all ranks; the loss is the mean over these."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "RankingBatch":
        """Copy to a device."""
        return RankingBatch(
            self.features.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.rows.to(device, non_blocking=non_blocking),
            self.global_size,
        )
