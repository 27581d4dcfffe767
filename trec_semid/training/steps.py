"""The training loop as a generator: one report per optimizer step; writes and prints nothing."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from trec_semid.data.batches import RankingBatch
from trec_semid.embeddings.collection import keyed_jagged
from trec_semid.runtime.ranks import Ranks
from trec_semid.training.optimizers import Updates, forget_gradients, update

T = TypeVar("T")


class StepReport(NamedTuple):
    """One optimizer step."""

    step: int
    """Steps done, this one included."""
    loss: Tensor
    """() float64 on the device: this rank's part of the step's loss, times the number of ranks. Its mean over
    ranks is the mean over the rows of the global batch, before the update; `finite.StepLosses` makes it."""
    num_rows: int
    """Rows of the global batch."""
    output: Any
    """What the model said of this rank's part of the last batch."""


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
    """Train on the batches, one step for every `accumulate` of them; nothing here waits for the device.

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
    """
    is_lower = precision != torch.float32
    for step, group in enumerate(_groups(batches, accumulate), steps_done + 1):
        if not model.training:  # whoever reads the reports may evaluate in between
            model.train()
        forget_gradients(updates)
        num_rows, output = sum(batch.global_size for batch in group), None
        losses: list[Tensor] = []
        for on_host in group:
            # A batch's loss is divided by the rows of the whole step, so that gradients add up to its mean.
            batch = on_host._replace(global_size=num_rows).to(ranks.device, non_blocking=True)
            positional, named = arguments(batch, step)
            with torch.autocast(ranks.device.type, precision, enabled=is_lower):
                output = model(*positional, **named)
            # Whether it is finite is asked later, of many steps at once: to ask here would hold up the host,
            # and with it the whole device, between forward and backward.
            losses.append(output.loss.detach().double())
            output.loss.backward()
        update(updates, step)
        yield StepReport(step, torch.stack(losses).sum() if accumulate > 1 else losses[0], num_rows, output)


def _groups(batches: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group
