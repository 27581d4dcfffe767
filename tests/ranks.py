"""Runs a function on several gloo ranks, the way torchrun does, and returns what each rank returned."""

import os
import tempfile
import uuid
from collections.abc import Callable
from multiprocessing import forkserver, get_context, resource_tracker
from multiprocessing.context import ForkServerContext
from typing import Any, TypeVar

from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

T = TypeVar("T")

# torch looks up the source of all of the stack for the names of events that nobody reads: 0.8 s of a
# processor a launch, with all the modules that are imported here.
dynamic_rendezvous.get_method_name = lambda depth=2: "not looked up"


def fork_server() -> ForkServerContext:
    """Return what starts processes as forks of a server that has imported torch, torchrec and every verb.

    A new interpreter costs 6 s of a processor until it has; the server does it once for a pytest process.
    What it has forked asks it, too: Python would start another one there.
    """
    context = get_context("forkserver")
    server: Any = vars(forkserver)["_forkserver"]
    if server._forkserver_address and not server._forkserver_pid:  # known, and no child of this process
        server.ensure_running = resource_tracker.ensure_running
    context.set_forkserver_preload(["tests.preloaded"])
    return context


def run_ranks(fn: Callable[..., T], world_size: int, *args: Any) -> list[T]:
    """Call `fn(*args)` in `world_size` new processes and return their results, rank 0 first.

    Each process sees the variables of torchrun, so `runtime.ranks.process_group()` works in it. `fn`, its
    arguments and its result must pickle: a module-level function, tensors copied off shared memory by
    `.numpy()`. An exception on a rank is raised here with that rank's traceback.
    """
    fork_server()
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "PYTHONWARNINGS")}
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
            start_method="forkserver",
            max_restarts=0,
            monitor_interval=0.1,
        )
        try:
            results = elastic_launch(config, _with_environment)(dict(os.environ), fn, *args)
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
    return [results[rank] for rank in range(world_size)]


def _with_environment(environment: dict[str, str], fn: Callable[..., T], *args: Any) -> T:
    """Give the rank what the launching process has now: the server has what it had at the first launch."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    return fn(*args)
