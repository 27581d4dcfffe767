"""The items of a batch, each named once: what a tokenizer inside a ranker reads.

Legend: B rows of this rank's part of the batch, U distinct items, n and m history entries.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trec_semid.core.arrays import Array


class ItemRows(NamedTuple):
    """Targets and histories of B rows as positions among distinct items.

    The most recent history entries of a row are `recent`, and their codes may be chosen afresh; those
    before are `older`, and their codes are looked up.
    """

    rows: Tensor
    """(U,) int64: distinct item rows, those of targets first, then of recent entries alone; at least one."""
    num_targets: int
    """Distinct targets: so many of `rows`, from the first."""
    targets: Tensor
    """(B,) int64: position of the target in `rows`; 0 for a padding row."""
    recent: Tensor
    """(n,) int64: positions in `rows`, row after row."""
    recent_lengths: Tensor
    """(B,) int64."""
    older: Tensor
    """(m,) int64: item rows, row after row."""
    older_lengths: Tensor
    """(B,) int64."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "ItemRows":
        """Copy to a device."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pinned(self) -> "ItemRows":
        """Copy into page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "ItemRows":
        rows, num_targets, *others = self
        return ItemRows(change(rows), num_targets, *(change(part) for part in others))


def find_item_rows(
    targets: Array, history: Array, lengths: Array, *, num_recent: int | None, num_padding: int = 0
) -> ItemRows:
    """Name every item of a batch once.

    Args:
        targets: (b,) item rows.
        history: (sum of lengths,) item rows of the histories, row after row, oldest first.
        lengths: (b,) entries of each row's history.
        num_recent: most recent entries of a row that count as recent; None for all.
        num_padding: padding rows to add, without history.
    """
    num_older = np.zeros_like(lengths) if num_recent is None else np.maximum(lengths - num_recent, 0)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(history)) - np.repeat(starts, lengths)
    is_recent = place >= np.repeat(num_older, lengths)
    named = np.concatenate([targets, history[is_recent]]).astype(np.int64, copy=False)
    rows, positions = np.unique(named, return_inverse=True)
    is_target = np.zeros(len(rows), bool)
    is_target[positions[: len(targets)]] = True
    order = np.argsort(~is_target, kind="stable")
    moved = np.empty_like(order)
    moved[order] = np.arange(len(order))
    rows, positions = rows[order], moved[positions]
    padding = np.zeros(num_padding, np.int64)
    return ItemRows(
        torch.from_numpy(rows if len(rows) else np.zeros(1, np.int64)),
        int(is_target.sum()) or 1,
        torch.from_numpy(np.append(positions[: len(targets)], padding).astype(np.int64)),
        torch.from_numpy(positions[len(targets) :].astype(np.int64)),
        torch.from_numpy(np.append(lengths - num_older, padding).astype(np.int64)),
        torch.from_numpy(history[~is_recent].astype(np.int64)),
        torch.from_numpy(np.append(num_older, padding).astype(np.int64)),
    )
