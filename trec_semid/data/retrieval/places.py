"""Histories over items, and which of their positions predict what.

Legend: B rows of a rank's part of a batch, L longest history of the batch, U listed items, V items read by
their codes alone, P places that predict, W targets a place at most, T soft targets of a place, S sampled
items.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from trec_semid.core.arrays import Array
from trec_semid.data.ragged import positions


class CodedHistories(NamedTuple):
    """Whole histories of items that are read by their codes alone: a batch brings item rows, and no features.

    What a model reads of these items it holds itself, a few bytes each.
    """

    rows: Tensor
    """(V,) int64: item rows, ascending; at least one, which fills up."""
    inputs: Tensor
    """(B, L) int64: positions among `rows`, filled up with 0 at the end."""
    lengths: Tensor
    """(B,) int64."""
    order: Tensor
    """(B,) int64, as of `Places`."""
    stretches: tuple[tuple[int, int], ...]
    """As of `Places`."""

    def by_length(self) -> Iterator[tuple[Tensor, int]]:
        """Yield row numbers (b,), and the longest of these rows, stretch by stretch."""
        yield from _by_length(self.order, self.stretches)


class Places(NamedTuple):
    """Histories, and which of their positions predict what.

    Where `coded` has the whole histories, `inputs` and `lengths` are of their last items alone.
    """

    inputs: Tensor
    """(B, L) int64: positions among the listed items, filled up with 0 at the end."""
    lengths: Tensor
    """(B,) int64."""
    predicting: Tensor
    """(P,) int64: b * L + t of the positions that predict."""
    targets: Tensor
    """(P, W) int64: positions among the listed items; -1 where there is none."""
    sampled: Tensor
    """(S,) int64: positions among the listed items of those drawn to stand for all others; may be empty."""
    log_q: Tensor
    """(U,) float32: log of how often an item is drawn; empty where nothing is."""
    order: Tensor
    """(B,) int64: rows, shortest first."""
    stretches: tuple[tuple[int, int], ...]
    """(rows, longest of them) of each stretch of `order`; where there are no rows, one of none."""

    coded: CodedHistories | None = None
    """All that histories hold, for a model that reads what is not recent by codes alone; None of others."""
    soft_targets: Tensor | None = None
    """(P, T) int64: positions among the listed items of those that a teacher lists, -1 for none; None without
    a teacher."""
    soft_shares: Tensor | None = None
    """(P, T) float32: what it takes each of these to be worth, 1 in sum; all 0 where it lists nothing."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Places":
        """Copy to a device."""
        coded = self.coded and _of_tensors(self.coded, lambda x: x.to(device, non_blocking=non_blocking))
        return _of_tensors(self, lambda x: x.to(device, non_blocking=non_blocking))._replace(coded=coded)

    def pinned(self) -> "Places":
        """Copy into page-locked memory."""
        coded = self.coded and _of_tensors(self.coded, Tensor.pin_memory)
        return _of_tensors(self, Tensor.pin_memory)._replace(coded=coded)

    def by_length(self) -> Iterator[tuple[Tensor, int]]:
        """Yield row numbers (b,), and the longest of these rows, stretch by stretch."""
        yield from _by_length(self.order, self.stretches)


HistoriesT = TypeVar("HistoriesT", Places, CodedHistories)


def _of_tensors(histories: HistoriesT, change: Callable[[Tensor], Tensor]) -> HistoriesT:
    """Return these with each tensor changed."""
    parts = histories._asdict().items()
    return histories._replace(**{name: change(x) for name, x in parts if isinstance(x, Tensor)})


def _by_length(order: Tensor, stretches: tuple[tuple[int, int], ...]) -> Iterator[tuple[Tensor, int]]:
    sizes, longest = zip(*stretches, strict=True)
    yield from zip(order.split(sizes), longest, strict=True)


def distinct_items(named: Array) -> tuple[Array, Array]:
    """Return the distinct of (n,) item rows, one where there are none, and (n,) where each of these is."""
    items, places_in_list = np.unique(named, return_inverse=True)
    return (items if len(items) else np.zeros(1, np.int64)), places_in_list.astype(np.int64)


def filled_up(values: Array, lengths: Array) -> Array:
    """Return (B, L), at least one wide, of the values of rows of (B,) lengths one after another."""
    inputs = np.zeros((len(lengths), max(int(lengths.max(initial=0)), 1)), np.int64)
    inputs[np.arange(inputs.shape[1]) < lengths[:, None]] = values
    return inputs


def coded_histories(values: Array, lengths: Array) -> CodedHistories:
    """Return histories of (B,) lengths, one after another, over their distinct items."""
    items, places_in_list = distinct_items(values)
    inputs = filled_up(places_in_list, lengths)
    rows, at, num = (torch.from_numpy(part) for part in (items, inputs, lengths))
    return CodedHistories(rows, at, num, *stretches_of(lengths))


def last_in_full(values: Array, lengths: Array, read: Array, num_in_full: int) -> tuple[Array, Array, Array]:
    """Return rows without what is read before the last so many items: values, lengths and how many are read.

    Args:
        values: rows of (B,) lengths, one after another.
        lengths: (B,).
        read: (B,) how many items a model reads at the start of each row; all others are targets.
        num_in_full: of those read, the last so many stay.
    """
    in_full = np.minimum(read, num_in_full)
    starts = np.cumsum(lengths) - lengths
    stay = in_full + lengths - read
    return values[positions(starts + read - in_full, stay)], stay, in_full


def stretches_of(lengths: Array) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Return `Places.order` and `.stretches` of rows of (B,) lengths.

    In a stretch no row is twice as long as another, save empty ones. Most histories are short and a few are
    long: read stretch by stretch they are filled up by a fraction of their length, read at once several times
    over.
    """
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    # The exponent of n - 1 is k for lengths 2^(k-1) + 1 to 2^k: one stretch for each k.
    _, doublings = np.frexp(np.maximum(ordered - 1, 0).astype(np.float64))
    ends = np.append(np.flatnonzero(np.diff(doublings)) + 1, len(order))
    longest = np.maximum(ordered[ends - 1], 1) if len(order) else np.ones(1, np.int64)
    rows = np.diff(ends, prepend=0)
    return torch.from_numpy(order), tuple(zip(rows.tolist(), longest.tolist(), strict=True))
