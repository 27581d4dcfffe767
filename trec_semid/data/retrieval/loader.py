"""Shuffled batches of training windows, the same on any number of ranks."""

from collections.abc import Iterator
from typing import final

import numpy as np

from trec_semid.core.arrays import Array
from trec_semid.core.seeds import numpy_generator
from trec_semid.data.retrieval.batches import SequenceBatch, SequenceMaker
from trec_semid.runtime.prefetch import prefetch


@final
class SequenceLoader:
    """Training batches; the position is (epoch, step) and can be set to go on from there.

    Every epoch is a permutation seeded by (seed, epoch), cut into batches. Batches of like lengths were tried
    and item IDs alone learnt less from them (docs/results/beauty.md). Ranks take every world_size-th row of
    a batch sorted by length, which gives all of them about the same work.
    """

    def __init__(
        self, maker: SequenceMaker, *, batch_size: int, seed: int, rank: int, world_size: int
    ) -> None:
        self._maker, self._batch_size, self._seed = maker, batch_size, seed
        self._rank, self._world_size = rank, world_size
        self.epoch, self.step = 0, 0

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch, the smallest one included."""
        return -(-len(self._maker.windows.lengths) // self._batch_size)

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position."""
        self.epoch, self.step = state["epoch"], state["step"]

    def batches(self) -> Iterator[SequenceBatch]:
        """Yield what is left of this epoch; the position moves as batches are taken."""
        for step, batch in enumerate(prefetch(self._epoch_batches(self.step)), self.step):
            self.step = step + 1
            yield batch
        self.epoch, self.step = self.epoch + 1, 0

    def rows_of_batches(self, epoch: int) -> list[Array]:
        """Return the row numbers (B,) of each global batch of an epoch."""
        order = numpy_generator(self._seed, "epoch", epoch).permutation(len(self._maker.windows.lengths))
        return [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]

    def _epoch_batches(self, first_step: int) -> Iterator[SequenceBatch]:
        for step, rows in enumerate(self.rows_of_batches(self.epoch)):
            if step >= first_step:
                generator = numpy_generator(self._seed, "sampled items", self.epoch, step, self._rank)
                by_length = rows[np.argsort(self._maker.windows.lengths[rows], kind="stable")]
                own = by_length[self._rank :: self._world_size]
                yield self._maker.make(own, self._maker.num_places(rows), generator)
