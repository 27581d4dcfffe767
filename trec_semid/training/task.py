"""What is trained, and how it is judged: all that the training loop has to know of a model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torchrec.distributed.model_parallel import DistributedModelParallel

from trec_semid.training.finetune.finetuning import Finetuning
from trec_semid.training.optimizers import Updates
from trec_semid.training.passes import Arguments


class Batches(Protocol):
    """Training batches that know where they are."""

    epoch: int

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        ...

    def batches(self) -> Iterator[Any]:
        """Yield what is left of this epoch."""
        ...

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch."""
        ...

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model on its ranks with its training batches, and how a step of it is called the best.

    Everything else, such as resume, the log and checkpoints, is the same for every task: see `loop.train`.
    """

    model: DistributedModelParallel
    """With loss: what it returns has `loss`, this rank's part of it times the number of ranks."""
    updates: Updates
    batches: Batches
    arguments: Callable[[Any, int], Arguments]
    """Of the model, from a batch on this rank's device and the number of its step."""
    evaluate: Callable[[], dict[str, float]]
    """Returns metrics of the validation split over all ranks, without the split's name."""
    select_by: str | None
    """The metric that decides which step is best; None where the last one is, and nothing is evaluated."""
    shown: tuple[str, ...]
    """Metrics that the log and the console say."""
    inputs: dict[str, str]
    """Checksums of what it is trained on: a run goes on with nothing else."""
    snapshot: Callable[[], dict[str, bytes]]
    """Makes what every checkpoint carries beside tensors: the semantic IDs, and their tokenizer."""
    finetuning: Finetuning | None = None
    """The tokenizer in the loop; None where codes stay what they are."""
