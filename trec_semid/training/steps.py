"""The training loop as a generator: one report per optimizer step; writes and prints nothing."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trec_semid.core.errors import TrainingError
from trec_semid.data.batches import RankingBatch
from trec_semid.embeddings.collection import keyed_jagged
from trec_semid.runtime.ranks import Ranks
from trec_semid.runtime.stopping import signal_asked
from trec_semid.training.optimizers import Updates, forget_gradients, update

T = TypeVar("T")


class StepReport(NamedTuple):
    """One optimizer step."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean over the rows of the global batch, before the update."""
    num_rows: int
    """Rows of the global batch."""
    output: Any
    """What the model said of this rank's part of the last batch."""
    must_stop: bool = False
    """Whether a signal has asked any rank to stop; the same on each."""


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
    accumulate: int = 1,
    precision: torch.dtype = torch.float32,
) -> Iterator[StepReport]:
    """Train on the batches, one step for every `accumulate` of them.

    The gradient of a step is that of the mean over the rows of all its batches. Tables that are sharded take
    each batch's share of it as it comes, inside backward; everything else takes the sum.

    Args:
        model: a `RankerWithLoss`, sharded or not.
        updates: what updates it.
        batches: this rank's parts of global batches, as many on every rank.
        steps_done: steps before the first batch.
        ranks: this process among its peers.
        arguments: of the model, from a batch on this rank's device and the number of its step.
        accumulate: batches of a step; the last step of all may have fewer.
        precision: of products inside the model, lower than float32 by autocast.

    Raises:
        TrainingError: the loss is not finite; the batch's update has not happened on any rank.
    """
    is_lower = precision != torch.float32
    for step, group in enumerate(_groups(batches, accumulate), steps_done + 1):
        if not model.training:  # whoever reads the reports may evaluate in between
            model.train()
        forget_gradients(updates)
        num_rows, loss, output = sum(batch.global_size for batch in group), 0.0, None
        must_stop = False
        for on_host in group:
            batch = on_host._replace(global_size=num_rows).to(ranks.device, non_blocking=True)
            positional, named = arguments(batch, step)
            with torch.autocast(ranks.device.type, precision, enabled=is_lower):
                output = model(*positional, **named)
            mean, is_asked = _finite_mean(output.loss, step)
            loss, must_stop = loss + mean, must_stop or is_asked
            output.loss.backward()
        update(updates, step)
        yield StepReport(step, loss, num_rows, output, must_stop)


def _groups(batches: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def _finite_mean(loss: Tensor, step: int) -> tuple[float, bool]:
    """Return the loss over ranks and whether any was asked to stop: one exchange tells both."""
    asked = loss.new_tensor(float(signal_asked() > 0))
    mean, share = means_over_ranks(torch.stack([loss.detach(), asked]))
    if not math.isfinite(mean):
        remedy = "Lower the learning rates, or bound the gradient by a small optimizers.dense.clip_norm."
        raise TrainingError(f"step {step}: the loss is {mean}. {remedy}")
    return mean, share > 0


def mean_over_ranks(value: Tensor) -> float:
    """Return the mean of a scalar over ranks, the same on each."""
    return means_over_ranks(value.reshape(1))[0]


def means_over_ranks(values: Tensor) -> list[float]:
    """Return the mean of each number over ranks, the same on each."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values.tolist()
    totals = values.clone()
    dist.all_reduce(totals)
    return [total / dist.get_world_size() for total in totals.tolist()]
