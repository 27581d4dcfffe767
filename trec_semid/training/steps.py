"""The training loop as a generator: one report per optimizer step; writes and prints nothing."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trec_semid.training.optimizers import Updates, forget_gradients, update
from trec_semid.training.passes import Passes, StepBatch
from trec_semid.training.profiling.times import StepTimes


class StepReport(NamedTuple):
    """One optimizer step."""

    step: int
    """Steps done, this one included."""
    loss: Tensor
    """() float64 on the device: this rank's part of the step's loss, times the number of ranks. Its mean over
    ranks is the mean over the rows of the global batch, before the update; `finite.StepLosses` makes it."""
    num_rows: int
    """Rows of the global batch."""
    num_batches: int
    """Batches of the step. A pipeline takes others meanwhile, which are not trained yet."""
    output: Any
    """What the model said of this rank's part of the last batch."""


def train_steps(
    passes: Passes, updates: Updates, batches: Iterable[Any], *, steps_done: int, accumulate: int = 1
) -> Iterator[StepReport]:
    """Train on the batches, one step for every `accumulate` of them; nothing here waits for the device.

    The gradient of a step is that of the mean over the rows of all its batches. Tables that are sharded take
    each batch's share of it as it comes, inside backward; everything else takes the sum.

    Args:
        passes: take batches through the model and back.
        updates: what updates the model.
        batches: this rank's parts of global batches, as many on every rank.
        steps_done: steps before the first batch.
        accumulate: batches of a step; the last step of all may have fewer.
    """
    times = passes.trained.times
    losses: list[Tensor] = []
    _begin(passes, updates)
    for of, output in passes.over(_of_steps(batches, accumulate, steps_done + 1, times)):
        # Whether it is finite is asked later, of many steps at once: to ask here would hold up the host, and
        # with it the whole device.
        losses.append(output.loss.detach().double())
        if of.is_last:
            with times.part("optimizer"):
                update(updates, of.step)
            times.end_step()
            loss = torch.stack(losses).sum() if accumulate > 1 else losses[0]
            with times.part("between"):
                yield StepReport(of.step, loss, of.batch.global_size, len(losses), output)
            losses = []
            _begin(passes, updates)


def _begin(passes: Passes, updates: Updates) -> None:
    model = passes.trained.model
    if not model.training:  # whoever reads the reports may evaluate in between
        model.train()
    forget_gradients(updates)


def _of_steps(batches: Iterable[Any], size: int, first_step: int, times: StepTimes) -> Iterator[StepBatch]:
    """Yield batches with the step that each is part of; a step's are taken together."""
    iterator, step = iter(batches), first_step
    while True:
        with times.part("input"):
            group = list(islice(iterator, size))
        if not group:
            return
        num_rows = sum(batch.global_size for batch in group)
        for number, batch in enumerate(group, 1):
            yield StepBatch(batch._replace(global_size=num_rows), step, number == len(group))
        step += 1
