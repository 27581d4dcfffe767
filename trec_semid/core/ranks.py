"""Who am I among the processes, and the process group around a job."""

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore, PrefixStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from trec_semid.core.processes import scratch_prefix

_GROUPS = itertools.count()
"""Numbers the process groups of this process; equal on all ranks, which join the same groups in order."""


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that prints and writes what is written once."""
        return self.rank == 0


@contextmanager
def process_group(*, timeout_s: float = 600.0) -> Iterator[Ranks]:
    """Join the process group that torchrun describes, or make one of a single process.

    Uses NCCL when every local rank has a GPU of its own and gloo otherwise. A group that is there
    already is used and left as it was, so jobs can run one after another in one process.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    # Asked of the node, not of this rank: every rank must choose the same backend.
    on_node = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
    with_gpu = torch.cuda.is_available() and on_node <= torch.cuda.device_count()
    device = torch.device("cuda", local_rank) if with_gpu else torch.device("cpu")
    if with_gpu:
        torch.cuda.set_device(device)
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size(), local_rank, device)
        return
    backend = "cpu:gloo,cuda:nccl" if with_gpu else "gloo"
    patience = timedelta(seconds=timeout_s)
    with tempfile.TemporaryDirectory(prefix=scratch_prefix()) as scratch:
        if "MASTER_ADDR" in os.environ and "RANK" in os.environ:
            store, _, _ = next(rendezvous("env://", timeout=patience))
        else:
            store = FileStore(f"{scratch}/store", world_size)
        # torchrun's store outlives a group: the next one must not meet the keys of the last.
        store = PrefixStore(f"group-{next(_GROUPS)}", store)
        dist.init_process_group(backend, timeout=patience, store=store, rank=rank, world_size=world_size)
        try:
            yield Ranks(rank, world_size, local_rank, device)
        finally:
            dist.destroy_process_group()


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's value, on every rank; [value] outside a process group."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Return rank 0's value on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
