"""Shuffled batches of training windows, the same on any number of ranks."""

from collections.abc import Iterator
from typing import final

import numpy as np

from trec_semid.core.arrays import Array
from trec_semid.core.seeds import numpy_generator
from trec_semid.data.epochs import EpochBatches
from trec_semid.data.retrieval.batches import SequenceBatch, SequenceMaker


@final
class SequenceLoader(EpochBatches[SequenceBatch]):
    """Shuffled training batches of rows in memory.

    Every epoch is a permutation seeded by (seed, epoch), cut into batches. Batches of like lengths were tried
    and item IDs alone learnt less from them (docs/results/beauty.md). Ranks take every world_size-th row of
    a batch sorted by length, which gives all of them about the same work.
    """

    def __init__(
        self, maker: SequenceMaker, *, batch_size: int, seed: int, rank: int, world_size: int
    ) -> None:
        self._maker, self._batch_size, self._seed = maker, batch_size, seed
        self._rank, self._world_size = rank, world_size

    @property
    def steps_per_epoch(self) -> int:
        """See `EpochBatches`."""
        return -(-len(self._maker.windows.lengths) // self._batch_size)

    def rows_of_batches(self, epoch: int) -> list[Array]:
        """Return the row numbers (B,) of each global batch of an epoch."""
        order = numpy_generator(self._seed, "epoch", epoch).permutation(len(self._maker.windows.lengths))
        return [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]

    def make_epoch(self, first_step: int) -> Iterator[SequenceBatch]:
        """See `EpochBatches`."""
        for step, rows in enumerate(self.rows_of_batches(self.epoch)):
            if step >= first_step:
                generator = numpy_generator(self._seed, "sampled items", self.epoch, step, self._rank)
                # Of the whole batch on every rank: what it holds does not depend on how many there are.
                changes = self._maker.draw_changes(
                    rows, numpy_generator(self._seed, "augment", self.epoch, step)
                )
                lengths = self._maker.windows.lengths[rows] if changes is None else changes.lengths
                own = np.argsort(lengths, kind="stable")[self._rank :: self._world_size]
                num_places = self._maker.num_places(rows, changes)
                yield self._maker.make(rows[own], num_places, generator, changes and changes.of(own))
