"""Fitting on several ranks: each takes its share of the rows, sums are taken over all."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trec_semid.core.arrays import Array
from trec_semid.core.errors import SemidError
from trec_semid.runtime.ranks import gather_objects, place_among_ranks


def world_size() -> int:
    """Return how many ranks there are; 1 outside a process group."""
    return place_among_ranks()[1]


def my_rank() -> int:
    """Return which of them this one is."""
    return place_among_ranks()[0]


def my_share(rows: Array) -> Array:
    """Return every world_size-th of (n,) rows, starting at this rank; all ranks' shares make up the rows."""
    return rows[my_rank() :: world_size()]


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of every rank's tensor, of any shape, on every rank."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def rows_of_all_ranks(values: Tensor) -> Tensor:
    """Return (W * n, ...): the rows (n, ...) of each of W ranks, in their order; all have equally many."""
    if world_size() == 1:
        return values
    whole = values.new_empty((world_size() * len(values), *values.shape[1:]))
    dist.all_gather_into_tensor(whole, values.contiguous())
    return whole


def largest_over_ranks(values: Tensor) -> Tensor:
    """Return the largest of every rank's numbers, place by place and of any shape, on every rank."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over ranks, in one exchange; absent gradients stay absent."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world_size() == 1 or not gradients:
        return
    # Every rank has to lack the same gradients, or numbers of different weights would be summed.
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def copy_from(rank: int, values: Tensor) -> Tensor:
    """Return one rank's tensor, of any shape, on every rank."""
    if world_size() > 1:
        values = values.clone(memory_format=torch.contiguous_format)
        dist.broadcast(values, src=rank)
    return values


@contextmanager
def refusing_together() -> Iterator[None]:
    """Raise on every rank what one of them refuses inside; all ranks enter, and exchange nothing inside.

    Raises:
        SemidError: that of the first rank that refuses something.
    """
    fault = None
    try:
        yield
    except SemidError as error:
        fault = error
    first = next((one for one in gather_objects(fault) if one is not None), None)
    if first is not None:
        raise first
