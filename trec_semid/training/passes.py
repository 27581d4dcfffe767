"""How batches go through a model and back: one after another, or in torchrec's pipeline."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast, final

import torch
from torch import Tensor, nn
from torch.fx._symbolic_trace import PHWithMeta
from torch.profiler import record_function
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineContext, TrainPipelineSparseDist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from trec_semid.data.batches import RankingBatch
from trec_semid.embeddings.collection import keyed_jagged
from trec_semid.runtime.ranks import Ranks
from trec_semid.training.profiling.times import StepTimes

PipelineKind = Literal["plain", "sparse_dist"]


class Arguments(NamedTuple):
    """How the model is called for a batch."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


def plain_arguments(batch: RankingBatch, step: int) -> Arguments:
    """Return what every ranker with loss reads, the same in every step."""
    items = () if batch.items is None else (batch.items,)
    read = (keyed_jagged(*batch.features), batch.labels, batch.weights, batch.global_size, *items)
    return Arguments(read, {})


class StepBatch(NamedTuple):
    """A batch on its way, and the step that it is part of."""

    batch: Any
    """Its `global_size` is the rows of the whole step, so that gradients add up to the mean over these."""
    step: int
    """Number of the step, from 1."""
    is_last: bool
    """Whether the step has no batch after it."""


class Passed(NamedTuple):
    """A batch that has been through the model and back: its gradients are there."""

    of: StepBatch
    output: Any
    """What the model said of it."""


@dataclass(frozen=True)
class Trained:
    """A sharded model as training calls it."""

    model: DistributedModelParallel
    """With loss: what it returns has `loss`."""
    ranks: Ranks
    arguments: Callable[[Any, int], Arguments] = plain_arguments
    """Of the model, from a batch on this rank's device and the number of its step."""
    precision: torch.dtype = torch.float32
    """Of products inside the model, lower than float32 by autocast."""
    times: StepTimes = field(default_factory=StepTimes)
    """Where the time of a step goes."""

    def forward(self, of: StepBatch) -> Any:
        """Return what the model says of a batch that lies on the device."""
        is_lower = self.precision != torch.float32
        with (
            self.times.part("forward"),
            record_function("forward"),
            torch.autocast(self.ranks.device.type, self.precision, enabled=is_lower),
        ):
            positional, named = self.arguments(of.batch, of.step)
            return self.model(*positional, **named)


class Passes(ABC):
    """Takes batches forward and back, in their order; nothing but sharded tables is updated by it."""

    def __init__(self, trained: Trained) -> None:
        self.trained = trained

    @abstractmethod
    def over(self, batches: Iterator[StepBatch]) -> Iterator[Passed]:
        """Yield the batches as they are done; they come on the host."""

    @abstractmethod
    def release(self) -> None:
        """Leave the model to whoever else calls it, until the next batch is done."""


@final
class PlainPasses(Passes):
    """One batch after another."""

    def over(self, batches: Iterator[StepBatch]) -> Iterator[Passed]:
        """See `Passes`."""
        times = self.trained.times
        for on_host in batches:
            with times.part("input"):
                of = on_host._replace(batch=on_host.batch.to(self.trained.ranks.device, non_blocking=True))
            output = self.trained.forward(of)
            with times.part("backward"), record_function("backward"):
                output.loss.backward()
            yield Passed(of, output)

    def release(self) -> None:
        """See `Passes`."""


@final
class SparseDistPasses(Passes):
    """torchrec's `TrainPipelineSparseDist`: ids of the batches to come travel while one is computed.

    Up to three batches are under way: one computes, the ids of the next are exchanged, and one is copied to
    the device. The model is traced down to its sharded tables, whose input has to be a field of the batch as
    it is: those of rankers without a tokenizer in the loop. What is computed is the same, number for number.
    """

    def __init__(self, trained: Trained) -> None:
        super().__init__(trained)
        self._pipeline = _TimedPipeline(
            trained.times,
            trained.model,
            cast(torch.optim.Optimizer, _NoOptimizer()),
            trained.ranks.device,
            custom_model_fwd=self._forward,
        )

    def over(self, batches: Iterator[StepBatch]) -> Iterator[Passed]:
        """See `Passes`."""
        fed = (_Fed(one) for one in batches)
        while True:
            try:
                # What is not counted as input, exchange or forward inside is the way back.
                with self.trained.times.part("backward"):
                    passed = self._pipeline.progress(fed)
            except StopIteration:  # which a generator may not let through
                return
            yield passed

    def release(self) -> None:
        """See `Passes`; batches under way are kept, and the next one takes the model again."""
        self._pipeline.detach()

    def _forward(self, fed: "_Fed | None") -> tuple[Tensor, Passed]:
        assert fed, "the pipeline calls the model for batches alone"
        output = self.trained.forward(fed.of)
        return output.loss, Passed(fed.of, output)


def build_passes(kind: PipelineKind, trained: Trained) -> Passes:
    """Return what a config names."""
    return SparseDistPasses(trained) if kind == "sparse_dist" else PlainPasses(trained)


@final
class _TimedPipeline(TrainPipelineSparseDist["_Fed", Passed]):
    """torchrec's pipeline, with the time of its input and of the exchange of ids."""

    def __init__(self, times: StepTimes, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._times = times

    def copy_batch_to_gpu(
        self, dataloader_iter: Iterator["_Fed"]
    ) -> tuple["_Fed | None", TrainPipelineContext | None]:
        """Take the next batch, and copy it to the device."""
        with self._times.part("input"):
            return super().copy_batch_to_gpu(dataloader_iter)

    def start_sparse_data_dist(self, batch: "_Fed | None", context: TrainPipelineContext) -> None:
        """Begin the exchange."""
        with self._times.part("exchange"):
            super().start_sparse_data_dist(batch, context)

    def wait_sparse_data_dist(self, context: TrainPipelineContext) -> None:
        """Wait until every rank knows how many ids come."""
        with self._times.part("exchange"):
            super().wait_sparse_data_dist(context)


@final
class _Fed(Pipelineable):
    """A batch as the pipeline takes it."""

    def __init__(self, of: StepBatch) -> None:
        self.of = of

    @property
    def features(self) -> KeyedJaggedTensor:
        """What sharded tables read, by the name that the model gives it."""
        return keyed_jagged(*self.of.batch.features)

    def to(self, device: torch.device, non_blocking: bool = False) -> "_Fed":
        """Copy to a device."""
        return _Fed(self.of._replace(batch=self.of.batch.to(device, non_blocking=non_blocking)))

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that a stream other than the copying one reads it."""
        batch: RankingBatch = self.of.batch
        for tensor in (*batch.features[1:], batch.labels, batch.weights, batch.rows):
            tensor.record_stream(stream)

    def to_proxy_tuple(self, model: nn.Module) -> dict[str, PHWithMeta]:
        """Return by which attribute of the batch each input of the model that tables read is found."""
        return {"features": PHWithMeta(ph_key="features")}


@final
class _NoOptimizer:
    """What the pipeline steps: updates are the loop's, which knows where a step ends."""

    def zero_grad(self) -> None:
        """Do nothing."""

    def step(self) -> None:
        """Do nothing."""
