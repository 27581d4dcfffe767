"""Runs a function on several gloo ranks, the way torchrun does, and returns what each rank returned."""

import os
import tempfile
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

T = TypeVar("T")


def run_ranks(fn: Callable[..., T], world_size: int, *args: Any) -> list[T]:
    """Call `fn(*args)` in `world_size` fresh processes and return their results, rank 0 first.

    Each process sees the variables of torchrun, so `runtime.ranks.process_group()` works in it. `fn`, its
    arguments and its result must pickle: a module-level function, tensors copied off shared memory by
    `.numpy()`. An exception on a rank is raised here with that rank's traceback.
    """
    kept = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "PYTHONWARNINGS")}
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory(prefix="ranks-") as scratch:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=world_size,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=os.path.join(scratch, "store"),
            rdzv_configs={"store_type": "file"},
            local_addr="localhost",
            start_method="spawn",
            max_restarts=0,
            monitor_interval=0.1,
        )
        try:
            results = elastic_launch(config, fn)(*args)
        finally:
            for name, value in kept.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
    return [results[rank] for rank in range(world_size)]
