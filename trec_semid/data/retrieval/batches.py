"""Batches of sequences over the distinct items they name: no Python loop over rows.

Legend: B rows of this rank's part, L longest history of the batch, U listed items, P places that predict,
W targets a place at most, T soft targets of a place, S sampled items.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from trec_semid.core.arrays import Array
from trec_semid.data.batches import Jagged
from trec_semid.data.features import Feature, Sources
from trec_semid.data.ragged import Ragged, positions
from trec_semid.data.retrieval.augment import AugmentConfig, Changes, draw_changes
from trec_semid.data.retrieval.places import (
    Places,
    coded_histories,
    distinct_items,
    filled_up,
    last_in_full,
    stretches_of,
)
from trec_semid.data.retrieval.soft_targets import SoftTargets


class SequenceBatch(NamedTuple):
    """One rank's rows of one global batch."""

    items: Tensor
    """(U,) int64: the listed item rows."""
    features: Jagged | None
    """Of the listed items; None where every batch lists the same ones, whose features never change."""
    places: Places
    rows: Tensor
    """(B,) int64: positions among the rows of the split."""
    global_size: int
    """Places that predict, over all ranks; the loss is the mean over these."""
    named: Tensor | None = None
    """(V,) int64: positions among the listed items that histories and targets name, ascending; what fills up
    counts. For a tokenizer in the loop, and computed on the host: a device would have to be waited for. None
    where all listed items are named, or no tokenizer asks."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "SequenceBatch":
        """Copy to a device."""
        return SequenceBatch(
            self.items.to(device, non_blocking=non_blocking),
            self.features and self.features.to(device, non_blocking=non_blocking),
            self.places.to(device, non_blocking=non_blocking),
            self.rows.to(device, non_blocking=non_blocking),
            self.global_size,
            None if self.named is None else self.named.to(device, non_blocking=non_blocking),
        )

    def pinned(self) -> "SequenceBatch":
        """Copy into page-locked memory, from which a GPU copies without blocking; what is there stays."""
        return SequenceBatch(
            self.items.pin_memory(),
            self.features and self.features.pinned(),
            self.places.pinned(),
            self.rows.pin_memory(),
            self.global_size,
            None if self.named is None else self.named.pin_memory(),
        )


@final
class ItemFeatures:
    """Makes the ids of items: one bag an item and feature."""

    def __init__(self, features: Sequence[Feature], sources: Sources) -> None:
        self.features, self._fields, self._has_id = tuple(features), sources.fields, sources.has_id
        self._keys = tuple(feature.name for feature in features)

    def of(self, rows: Array) -> Jagged:
        """Return the features of (n,) item rows, in their order."""
        parts = [self._part(feature, rows) for feature in self.features]
        values = [ids for ids, _ in parts] or [np.zeros(0, np.int64)]
        lengths = [lengths for _, lengths in parts] or [np.zeros(0, np.int64)]
        return Jagged(
            self._keys,
            torch.from_numpy(np.concatenate(values).astype(np.int64, copy=False)),
            torch.from_numpy(np.concatenate(lengths).astype(np.int32)),
        )

    def mean_lengths(self) -> dict[str, float]:
        """Return the average number of ids of each feature, which table placement depends on."""
        return {name: float(self._fields[name].lengths.mean()) for name in self._keys if name in self._fields}

    def _part(self, feature: Feature, rows: Array) -> tuple[Array, Array]:
        if feature.name in self._fields:
            return self._fields[feature.name].take(rows)
        if self._has_id is not None:
            return rows[self._has_id[rows]], self._has_id[rows].astype(np.int64)
        return rows, np.ones(len(rows), np.int64)


class SampledItems(NamedTuple):
    """How items are drawn to stand for a catalogue too large to score."""

    num_sampled: int
    cumulated: Array
    """(N,) float64: running sum of each item's share of draws, the last 1."""

    def draw(self, generator: np.random.Generator) -> Array:
        """Return (S,) item rows, drawn with replacement."""
        drawn = np.searchsorted(self.cumulated, generator.random(self.num_sampled), side="right")
        return np.minimum(drawn, len(self.cumulated) - 1)

    def log_q(self, rows: Array) -> Array:
        """Return log of the expected number of draws of each of (n,) item rows."""
        share = self.cumulated[rows] - np.where(rows > 0, self.cumulated[rows - 1], 0.0)
        return np.log(np.maximum(share, 1e-30) * self.num_sampled).astype(np.float32)


def sampled_by_popularity(
    counts: Array, num_sampled: int, power: float, *, draws_unseen: bool = True
) -> SampledItems:
    """Return draws by (training events + 1) to the power: 1 is by popularity, 0 uniform.

    Args:
        counts: (N,) training events of each item.
        num_sampled: items of a rank's batch.
        power: how much popular items are preferred.
        draws_unseen: whether items without training events are drawn.
    """
    is_drawn = (counts > 0) | draws_unseen
    weights = np.cumsum(is_drawn * (counts + 1.0) ** power)
    return SampledItems(num_sampled, weights / weights[-1])


class Window(NamedTuple):
    """Which positions of a training row predict, and what."""

    num_targets: int
    """W: the next W items are targets of a position."""
    is_last_only: bool
    """Whether the position before a row's last W items alone predicts, and these are not read (sliding rows);
    a row of W items or fewer reads its first."""
    taught: Array | None = None
    """(rows,) last items of each row that may be targets; all but the first where not given."""
    augment: AugmentConfig | None = None
    """How rows are varied, all of whose items but the first are targets; not at all where not given."""
    soft: SoftTargets | None = None
    """What a teacher lists after each of the rows' `values`; nothing where not given."""

    def num_read(self, lengths: Array, taught: Array) -> Array:
        """Return (n,): how many items a model reads of rows; all others are targets alone.

        Args:
            lengths: (n,) items of rows.
            taught: (n,) last items of each that may be targets.
        """
        return lengths - (np.minimum(self.num_targets, taught) if self.is_last_only else 1)


@final
class SequenceMaker:
    """Makes batches of training windows; what is a target alone, at the end of a row, is not read."""

    def __init__(
        self,
        windows: Ragged,
        item_features: ItemFeatures,
        config: Window,
        *,
        listed: Array | None = None,
        sampled: SampledItems | None = None,
        num_in_full: int | None = None,
        finds_named: bool = False,
        pinned: bool = False,
    ) -> None:
        """Describe the batches.

        Args:
            windows: items of each row, oldest first, at least two.
            item_features: makes ids of the listed items.
            config: which positions predict what.
            listed: (n,) item rows that every batch lists, ascending, those of `windows` among them; a batch
                lists those it names where not given.
            sampled: drawn items to list besides; none where not given.
            num_in_full: last items of a history, one at least, that are listed; all of it is brought as
                `Places.coded` then, of rows whose last position alone predicts; all where not given.
            finds_named: whether batches say which of the listed items histories and targets name.
            pinned: whether batches lie in page-locked memory.
        """
        assert config.soft is None or num_in_full is None, "no method that is taught reads less in full"
        self.windows, self._features, self._config = windows, item_features, config
        self._taught = windows.lengths - 1 if config.taught is None else config.taught
        self._listed, self._sampled, self._num_in_full = listed, sampled, num_in_full
        self._finds_named, self._pinned = finds_named and (listed is not None or sampled is not None), pinned
        if listed is not None:  # once for all batches, which then share it
            self._listed_rows = torch.from_numpy(listed).pin_memory() if pinned else torch.from_numpy(listed)
        self._place = None if listed is None else _places_of(listed)

    def draw_changes(self, rows: Array, generator: np.random.Generator) -> Changes | None:
        """Return what happens to (B,) rows of a global batch in a step; None where rows are as they were."""
        if self._config.augment is None:
            return None
        ahead = self._config.num_targets if self._config.is_last_only else 1
        return draw_changes(self._config.augment, self.windows.lengths[rows], ahead, generator)

    def num_places(self, rows: Array, changes: Changes | None = None) -> int:
        """Return how many positions of (b,) rows, to which some changes happen, predict."""
        if self._config.is_last_only:
            return len(rows)
        if changes is not None:
            return int((changes.lengths - 1 - changes.num_silent).sum())
        return int(self._taught[rows].sum())

    def make(
        self,
        rows: Array,
        global_size: int,
        generator: np.random.Generator,
        changes: Changes | None = None,
    ) -> SequenceBatch:
        """Return the batch of the given row numbers, in their order.

        Args:
            rows: (B,) row numbers.
            global_size: predicting positions of the global batch.
            generator: draws the sampled items.
            changes: what happens to these rows; nothing where not given.
        """
        (values, lengths), taught, order = self._taken(rows, changes)
        coded = None
        read = self._config.num_read(lengths, taught)
        if self._num_in_full is not None:
            assert self._config.is_last_only, "a config of other rows is refused"
            coded = coded_histories(values[positions(np.cumsum(lengths) - lengths, read)], read)
            values, lengths, read = last_in_full(values, lengths, read, self._num_in_full)
        place = np.arange(max(int(read.max(initial=0)), 1))
        first = read - 1 if self._config.is_last_only else lengths - 1 - taught
        predicts = (place < read[:, None]) & (place >= first[:, None])
        if changes is not None and order is not None:
            predicts &= changes.has_read_all(place)
        soft, shares = self._soft_of(rows, predicts, changes)
        drawn = self._sampled.draw(generator) if self._sampled else np.zeros(0, np.int64)
        listable = np.zeros(0, np.int64) if soft is None else soft[soft >= 0]
        items, places_in_list = self._list(np.concatenate([values, drawn, listable]))
        named, sampled, listable = np.split(places_in_list, np.cumsum([len(values), len(drawn)]))
        if soft is not None:
            soft[soft >= 0] = listable
        starts = np.cumsum(lengths) - lengths
        seen = named if order is None else named[order]
        inputs = filled_up(seen[positions(starts, read)], read)
        predicting, targets = self._targets(named, starts, lengths, predicts)
        places = Places(
            torch.from_numpy(inputs),
            torch.from_numpy(read),
            torch.from_numpy(predicting),
            torch.from_numpy(targets),
            torch.from_numpy(sampled),
            torch.from_numpy(self._sampled.log_q(items) if self._sampled else np.zeros(0, np.float32)),
            *stretches_of(read),
            coded,
            None if soft is None else torch.from_numpy(soft),
            None if shares is None else torch.from_numpy(shares),
        )
        features = self._features.of(items) if self._listed is None else None
        batch = SequenceBatch(
            torch.from_numpy(items) if self._listed is None else self._listed_rows,
            features,
            places,
            torch.from_numpy(rows.copy()),
            global_size,
            torch.from_numpy(_named(inputs, targets)) if self._finds_named else None,
        )
        return batch.pinned() if self._pinned else batch

    def _soft_of(
        self, rows: Array, predicts: Array, changes: Changes | None
    ) -> tuple[Array, Array] | tuple[None, None]:
        """Return (P, T) item rows that a teacher lists, and their shares; None without one.

        Args:
            rows: (B,) row numbers.
            predicts: (B, L) bool of places.
            changes: what happens to these rows. A place that predicts has read all up to its last event, in
                whatever order; what a crop has cut off before it the teacher has still read.
        """
        if self._config.soft is None:
            return None, None
        row, place = np.nonzero(predicts)
        first = self.windows.starts[rows] + (0 if changes is None else changes.first)
        return self._config.soft.of(first[row] + place)

    def _taken(self, rows: Array, changes: Changes | None) -> tuple[tuple[Array, Array], Array, Array | None]:
        """Return items and lengths of (B,) rows, how many may be targets, and the order of what is read."""
        values, lengths = self.windows.take(rows)
        if changes is None:
            return (values, lengths), self._taught[rows], None
        values = values[positions(np.cumsum(lengths) - lengths + changes.first, changes.lengths)]
        order, taught = changes.order(), changes.lengths - 1
        if self._config.is_last_only:  # targets stand behind all that is shuffled
            return (values[order], changes.lengths), taught, None
        return (values, changes.lengths), taught, order

    def _list(self, named: Array) -> tuple[Array, Array]:
        """Return the listed item rows and where each named one stands among them."""
        if self._listed is not None and self._place is not None:
            return self._listed, self._place[named]
        return distinct_items(named)

    def _targets(self, named: Array, starts: Array, lengths: Array, predicts: Array) -> tuple[Array, Array]:
        """Return predicting (P,) and targets (P, W)."""
        row, place = np.nonzero(predicts)
        ahead = place[:, None] + 1 + np.arange(self._config.num_targets)
        exists = ahead < lengths[row][:, None]
        at = np.where(exists, starts[row][:, None] + ahead, 0)
        return np.flatnonzero(predicts), np.where(exists, named[at] if len(named) else 0, -1)


def _named(inputs: Array, targets: Array) -> Array:
    """Return (V,): the distinct positions in (B, L) inputs and (P, W) targets; -1 of a target counts as 0."""
    return np.unique(np.concatenate([inputs.ravel(), np.maximum(targets, 0).ravel()]))


def _places_of(listed: Array) -> Array:
    """Return (last listed row + 1,): where each listed item stands; a meaningless number for others."""
    places = np.zeros(int(listed[-1]) + 1, np.int64)
    places[listed] = np.arange(len(listed))
    return places


def history_batch(
    histories: Ragged,
    rows: Array,
    item_features: ItemFeatures,
    global_size: int,
    *,
    num_in_full: int | None = None,
) -> SequenceBatch:
    """Return the histories of the given rows, whose last item predicts; a row without items predicts nothing.

    Args:
        histories: items of each row, oldest first.
        rows: (B,) row numbers.
        item_features: makes ids of the listed items.
        global_size: rows of the global batch.
        num_in_full: as of `SequenceMaker`.
    """
    values, lengths = histories.take(rows)
    coded = None
    if num_in_full is not None:
        coded = coded_histories(values, lengths)
        values, lengths, _ = last_in_full(values, lengths, lengths, num_in_full)
    items, places_in_list = distinct_items(values)
    inputs = filled_up(places_in_list, lengths)
    last = np.arange(len(rows)) * inputs.shape[1] + lengths - 1
    places = Places(
        torch.from_numpy(inputs),
        torch.from_numpy(lengths),
        torch.from_numpy(last[lengths > 0]),
        torch.zeros((int((lengths > 0).sum()), 0), dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0),
        *stretches_of(lengths),
        coded,
    )
    return SequenceBatch(
        torch.from_numpy(items), item_features.of(items), places, torch.from_numpy(rows), global_size
    )
