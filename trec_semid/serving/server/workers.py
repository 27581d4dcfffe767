"""Several processes that take connections from one socket; the first one only starts them, and ends them.

They are forks of one process that has imported everything and opened nothing. Each opens the bundle for
itself: its files are mapped into memory, so that all share the same pages.
"""

import gc
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from types import FrameType
from typing import final

from prometheus_client import multiprocess

from trec_semid.core.errors import SemidError
from trec_semid.serving.server.config import ServeConfig

_log = logging.getLogger(__name__)
_KILL_AFTER_S = 2.0
"""From the time that a worker has to end itself to its end at all costs."""
_AGAIN_S = (1.0, 30.0)
"""How soon a worker that ended is started again, at first and at most."""
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Work = Callable[[Callable[[], object]], object]
"""What a worker does; it calls what it gets when requests can be answered."""


class WorkerError(SemidError):
    """What a worker failed with before it served; the exit code is that of its error."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@final
class _Worker:
    """One process, and what it says of itself."""

    def __init__(self, work: Work) -> None:
        self._hears, says = multiprocessing.Pipe(duplex=False)
        self.process = ForkProcess(target=_be_worker, args=(work, says))
        self.process.start()
        says.close()
        self.is_ready, self.error = False, ""

    def listen(self) -> None:
        """Take what it has said so far."""
        with suppress(EOFError, OSError):
            while self._hears.poll():
                self.is_ready, self.error = self._hears.recv()

    @property
    def ears(self) -> tuple[int, Connection]:
        """What there is to wait for: its end, and its words."""
        return self.process.sentinel, self._hears

    def forget(self, counts: str) -> int:
        """Let go of one that has ended, and of what it counted as alive; return its exit code."""
        self.process.join()
        self.listen()
        self._hears.close()
        multiprocess.mark_process_dead(self.process.pid, counts)
        return self.process.exitcode or 0


@final
class Crew:
    """So many workers, started again where one ends by itself, until a signal comes."""

    def __init__(self, work: Work, config: ServeConfig, counts: str, on_ready: Callable[[], object]) -> None:
        """Name the work.

        Args:
            work: of each worker.
            config: says how many there are, and how long they may take to end.
            counts: folder in which they count.
            on_ready: called once, when all can answer.
        """
        self._work, self._counts, self._on_ready = work, counts, on_ready
        self._size, self._stop_s = config.workers, config.stop_s
        self._workers: list[_Worker] = []
        self._told_at: float | None = None
        self._again_s, self._not_before = _AGAIN_S[0], 0.0
        self._was_ready = False

    def run(self) -> None:
        """Work until told to stop.

        Raises:
            WorkerError: a worker ended before all were ready for the first time.
        """
        gc.freeze()  # a search for garbage in a worker would write to the pages that all share
        with self._forwarding():
            self._workers = [_Worker(self._work) for _ in range(self._size)]
            try:
                while self._told_at is None:
                    self._look()
                self._see_them_end()
            finally:
                for worker in self._workers:
                    worker.process.kill()
                    worker.forget(self._counts)

    def _look(self) -> None:
        wait([ear for worker in self._workers for ear in self._ears_of(worker)], timeout=0.5)
        for worker in list(self._workers):
            worker.listen()
            if not worker.process.is_alive() and self._told_at is None:
                self._workers.remove(worker)
                self._lost(worker, worker.forget(self._counts))
        if not self._was_ready and len(self._workers) == self._size:
            self._was_ready = all(worker.is_ready for worker in self._workers)
            if self._was_ready:
                self._on_ready()
        is_time = time.monotonic() >= self._not_before
        if self._was_ready and is_time and len(self._workers) < self._size and self._told_at is None:
            self._workers.append(_Worker(self._work))

    def _ears_of(self, worker: _Worker) -> tuple[int | Connection, ...]:
        # A worker says one thing; after that only its end is waited for, as a closed pipe has always news.
        return worker.ears[:1] if worker.is_ready or worker.error else worker.ears

    def _lost(self, worker: _Worker, exit_code: int) -> None:
        why = worker.error or f"ended with exit code {exit_code}"
        if not self._was_ready:
            raise WorkerError(worker.error or f"a worker {why}", exit_code if exit_code > 0 else 1)
        self._again_s = _AGAIN_S[0] if worker.is_ready else min(2 * self._again_s, _AGAIN_S[1])
        self._not_before = time.monotonic() + self._again_s
        _log.warning("worker %d: %s; another one starts in %.0f s", worker.process.pid, why, self._again_s)

    def _see_them_end(self) -> None:
        until = (self._told_at or 0.0) + self._stop_s + _KILL_AFTER_S
        while self._workers and (left := until - time.monotonic()) > 0:
            wait([worker.process.sentinel for worker in self._workers], timeout=left)
            for worker in [each for each in self._workers if not each.process.is_alive()]:
                self._workers.remove(worker)
                worker.forget(self._counts)

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        """Hand signals on to the workers."""
        before = {number: signal.signal(number, self._hand_on) for number in _FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGHUP:
            self._told_at = self._told_at or time.monotonic()
        for worker in self._workers:
            with suppress(OSError):
                os.kill(worker.process.pid or 0, signal.SIGHUP if number == signal.SIGHUP else signal.SIGTERM)


def _be_worker(work: Work, says: Connection) -> None:
    # What was heeded in the first process is none of the worker's: its pipe of signals is the parent's.
    signal.set_wakeup_fd(-1)
    for number in _FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    try:
        work(lambda: says.send((True, "")))
    except SemidError as error:
        with suppress(OSError):
            says.send((False, str(error)))
        raise SystemExit(error.exit_code) from None
