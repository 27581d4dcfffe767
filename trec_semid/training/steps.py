"""The training loop as a generator: one report per optimizer step; writes and prints nothing."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from trec_semid.core.errors import TrainingError
from trec_semid.core.ranks import Ranks
from trec_semid.data.batches import RankingBatch
from trec_semid.embeddings.collection import keyed_jagged
from trec_semid.training.optimizers import Updates, update


class StepReport(NamedTuple):
    """One optimizer step."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean over the rows of the global batch, before the update."""
    num_rows: int
    """Rows of the global batch."""
    output: Any
    """What the model said of this rank's part."""


class Arguments(NamedTuple):
    """How the model is called for a batch."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


def plain_arguments(batch: RankingBatch, step: int) -> Arguments:
    """Return what every ranker with loss reads, the same in every step."""
    items = () if batch.items is None else (batch.items,)
    read = (keyed_jagged(*batch.features), batch.labels, batch.weights, batch.global_size, *items)
    return Arguments(read, {})


def train_steps(
    model: nn.Module,
    updates: Updates,
    batches: Iterable[RankingBatch],
    *,
    steps_done: int,
    ranks: Ranks,
    arguments: Callable[[RankingBatch, int], Arguments] = plain_arguments,
) -> Iterator[StepReport]:
    """Train on the batches, one step each.

    Args:
        model: a `RankerWithLoss`, sharded or not.
        updates: what updates it.
        batches: this rank's parts of global batches, as many on every rank.
        steps_done: steps before the first batch.
        ranks: this process among its peers.
        arguments: of the model, from a batch on this rank's device and the number of its step.

    Raises:
        TrainingError: the loss is not finite; the step's update has not happened on any rank.
    """
    for step, on_host in enumerate(batches, steps_done + 1):
        batch = on_host.to(ranks.device, non_blocking=True)
        if not model.training:  # whoever reads the reports may evaluate in between
            model.train()
        positional, named = arguments(batch, step)
        output = model(*positional, **named)
        loss = mean_over_ranks(output.loss.detach())
        if not math.isfinite(loss):
            remedy = "Lower the learning rates or set optimizers.dense.clip_norm."
            raise TrainingError(f"step {step}: the loss is {loss}. {remedy}")
        update(output.loss, updates, step)
        yield StepReport(step, loss, batch.global_size, output)


def mean_over_ranks(value: Tensor) -> float:
    """Return the mean of a scalar over ranks, the same on each."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value.item()
    total = value.clone()
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()
