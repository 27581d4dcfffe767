"""Training batches that come epoch by epoch and know where they are."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Generic, TypeVar

from trec_semid.runtime.prefetch import prefetch

Batch = TypeVar("Batch")


class EpochBatches(ABC, Generic[Batch]):
    """Batches of training; the position is (epoch, step), and can be set to go on from there."""

    epoch: int = 0
    step: int = 0

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch, the last and smaller ones included."""

    @abstractmethod
    def make_epoch(self, first_step: int) -> Iterator[Batch]:
        """Yield the batches of this epoch from a step on."""

    def batches(self) -> Iterator[Batch]:
        """Yield what is left of this epoch; the position moves as batches are taken."""
        for step, batch in enumerate(prefetch(self.make_epoch(self.step)), self.step):
            # Moved as a batch is handed out, not as it is built ahead: whoever goes on from here skips none.
            self.step = step + 1
            yield batch
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position."""
        self.epoch, self.step = state["epoch"], state["step"]
