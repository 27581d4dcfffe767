"""One process of the server: an event loop, the thread of the engine, signals, and an end in good order.

SIGTERM or SIGINT: no connection is taken any more, what has begun is answered, exit code 0.
SIGHUP: look for another bundle at once.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, final

import torch
import uvicorn
from starlette.types import ASGIApp

from trec_semid.runtime.stopping import leave
from trec_semid.serving.engine import Engine
from trec_semid.serving.server.answering import Service
from trec_semid.serving.server.batching import Batcher
from trec_semid.serving.server.config import ServeConfig
from trec_semid.serving.server.keeping import THREAD, Keeper
from trec_semid.serving.server.metrics import Meters
from trec_semid.serving.server.routes import make_app
from trec_semid.serving.server.secrets import Secrets

_log = logging.getLogger(__name__)
_SWITCH_S = 0.0005
"""How soon a thread gives way to another: the event loop should not wait for one that opens a bundle [s]."""
_PARENT_POLL_S = 1.0
_ECHO_S = 1.0
_BACKLOG = 2048
_KEEP_ALIVE_S = 75
"""A connection that is idle is closed after this: later than proxies do, which is after 60 s, so that none
sends a request to one that is just being closed."""


class Means(NamedTuple):
    """What a process serves with."""

    config: ServeConfig
    own: socket.socket
    """Listens."""
    secrets: Secrets
    open_engine: Callable[[str], Engine]
    """Opens a bundle by its place."""
    counts: str | None
    """Folder in which several processes count together."""


@final
class _Server(uvicorn.Server):
    """Uvicorn's, with the signals left to this module: it would raise them again in the end."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; workers share it.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, connections send small parts at once: asyncio sees to that only then, and
    # without it an answer's body waits 40 ms for the client's word that the head has come.
    own = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        own.bind((host, port))
        own.listen(_BACKLOG)
    except OSError:
        own.close()
        raise
    own.set_inheritable(True)
    return own


def serve_here(means: Means, on_ready: Callable[[], object]) -> None:
    """Serve in this process until it is told to stop.

    Args:
        means: what with.
        on_ready: called when requests can be answered.

    Raises:
        SemidError: the first bundle cannot be opened, or fails its check.
    """
    sys.setswitchinterval(_SWITCH_S)
    with _restored_handlers():
        asyncio.run(_serve(means, on_ready))
    if any(thread.name == THREAD for thread in threading.enumerate()):
        # A bundle is being opened by a library whose threads do not survive the end of an interpreter.
        leave(0)


async def _serve(means: Means, on_ready: Callable[[], object]) -> None:
    config = means.config
    meters = Meters(means.counts)
    batcher = Batcher(
        config.batch, config.limits.queue, meters, lambda: torch.set_num_threads(config.threads)
    )
    keeper = Keeper(config.bundle, batcher, meters, means.open_engine)
    service = Service(config, batcher, meters, means.secrets, lambda: keeper.problem)
    batcher.start()
    server = _Server(_uvicorn_config(make_app(service), config))
    _heed(server, service, keeper)
    serving = asyncio.create_task(server.serve([means.own]))
    tasks = [asyncio.create_task(_watch_parent(server))]
    try:
        opening = asyncio.create_task(keeper.open_first())
        await asyncio.wait([opening, serving], return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            await opening
            # What is there by now stays: searches for garbage, which hold up everything for a quarter of a
            # second, leave it out. What later bundles bring is searched in 2 ms.
            gc.freeze()
            on_ready()
            tasks.append(asyncio.create_task(keeper.watch(config.look_every_s)))
        await serving
    finally:
        server.should_exit = True
        await serving
        for task in tasks:
            task.cancel()
        batcher.close()


def _uvicorn_config(app: ASGIApp, config: ServeConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(config.stop_s)),
    )


def _heed(server: uvicorn.Server, service: Service, keeper: Keeper) -> None:
    loop = asyncio.get_running_loop()
    told_at = 0.0

    def stop() -> None:
        """Take no more; at a second signal do not wait either."""
        nonlocal told_at
        # A signal that comes again at once is the same one: terminals send it to all processes.
        if told_at and loop.time() - told_at > _ECHO_S:
            server.force_exit = True
        told_at = told_at or loop.time()
        service.is_stopping = server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, keeper.nudge)


@contextmanager
def _restored_handlers() -> Iterator[None]:
    """Give signals back to who had them: the loop takes them for itself, and forgets who that was."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            with suppress(TypeError):  # of a handler that was not set from Python
                signal.signal(number, handler)


async def _watch_parent(server: uvicorn.Server) -> None:
    """Stop where the process that started this one is gone."""
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(_PARENT_POLL_S)
    _log.warning("the process that started this one (%d) is gone: stopping", parent)
    server.should_exit = True
