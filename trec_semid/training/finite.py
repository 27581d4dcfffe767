"""Whether losses, and all that training changes, are still numbers: asked now and then, of all at once.

A question to the device holds up the host until all that was asked of it before is done. So losses of many
steps are left there and read together.
"""

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.tensor import DTensor

from trec_semid.checkpoints.tensors import Trainable, named_tensors
from trec_semid.core.errors import TrainingError
from trec_semid.core.finite import first_not_finite
from trec_semid.runtime.ranks import gather_objects
from trec_semid.training.steps import StepReport


class StepLosses:
    """Losses of steps, left on the device until they are read."""

    def __init__(self) -> None:
        self._steps: list[StepReport] = []

    def add(self, report: StepReport) -> None:
        """Take a step."""
        self._steps.append(report._replace(output=None))  # its output holds the memory of a whole batch

    def read(self) -> list[tuple[float, int]]:
        """Return the mean loss and the rows of the global batch of each step since the last look.

        All ranks read together; they wait for the device once.

        Raises:
            TrainingError: the loss of a step was not finite; names the first one.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return []
        means = means_over_ranks(torch.stack([one.loss for one in steps]))
        for one, mean in zip(steps, means, strict=True):
            if not math.isfinite(mean):
                raise TrainingError(
                    f"step {one.step}: the loss is {mean}. Lower the learning rates, or bound the gradient "
                    "by a small optimizers.dense.clip_norm."
                )
        return [(mean, one.num_rows) for one, mean in zip(steps, means, strict=True)]


def means_over_ranks(values: Tensor) -> list[float]:
    """Return the mean over ranks of each number of (n,), the same on each rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values.tolist()
    totals = values.clone()
    dist.all_reduce(totals)
    return [total / dist.get_world_size() for total in totals.tolist()]


def expect_finite(trainable: Trainable, step: int, last_good: str | None) -> None:
    """Check weights and optimizer states after a step; all ranks ask together.

    A loss is that of the weights before its update: only a look at the weights finds an update that went
    wrong in the last step. Reads every number once; waits for the device once.

    Args:
        trainable: model and optimizers.
        step: the last one done.
        last_good: the checkpoint to name; None before the first.

    Raises:
        TrainingError: some weight or state is NaN or infinite, on whichever rank.
    """
    # All ranks raise together: one that stopped alone would leave its peers in their next collective.
    names = [name for name in gather_objects(first_that_is_not_finite(trainable)) if name]
    if names:
        told = f"The last good checkpoint is {last_good}." if last_good else "There is no checkpoint yet."
        raise TrainingError(
            f"step {step}: {names[0]} is not finite after the update. Lower the learning rates or set "
            f"optimizers.dense.clip_norm. {told}"
        )


def first_that_is_not_finite(trainable: Trainable) -> str:
    """Return the name of a tensor of this rank with NaN or an infinite number in it; '' if there is none.

    Buffers are left out: a mask may hold infinite numbers.
    """
    buffers = {f"model/{name}" for name, _ in trainable.model.named_buffers()}
    return first_not_finite(
        (name, part)
        for name, tensor in named_tensors(trainable).items()
        if name not in buffers
        for part in _local(tensor)
    )


def _local(tensor: object) -> Iterator[Tensor]:
    """Yield this rank's numbers of a tensor that may be sharded."""
    if isinstance(tensor, ShardedTensor):
        parts = [shard.tensor for shard in tensor.local_shards()]
    elif isinstance(tensor, DTensor):
        parts = [tensor.to_local()]
    else:
        parts = [tensor]
    for part in parts:
        if isinstance(part, Tensor):
            yield part
