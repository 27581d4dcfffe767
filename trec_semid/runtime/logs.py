"""What a run says: JSON lines per rank, TensorBoard scalars, console messages and progress with ETA."""

import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trec_semid.core.paths import (
    exists,
    filesystem,
    find_files,
    is_local,
    join,
    make_folder,
    open_file,
    read_bytes,
    write_bytes,
)
from trec_semid.core.processes import scratch_prefix

if TYPE_CHECKING:
    from trec_semid.runtime.ranks import Ranks  # imports torch, which the command line does without

CONSOLE = Console(stderr=True)
"""Where progress and messages go; results go to standard output."""
T = TypeVar("T")
_QUIET_S = 2.0
"""Work shorter than this shows no progress bar [s]."""
_TICK_S = 0.5
_FLUSH_S = 30.0
"""How often a log on an object store is written."""
_SHOWING = threading.Lock()
"""Held by the one bar that is on the terminal: work inside work stays silent."""


def set_up_console(ranks: "Ranks | None" = None, *, level: int = logging.INFO) -> None:
    """Send log messages to the console on rank 0 and only warnings, with their rank, on the others."""
    rank = ranks.rank if ranks else 0
    handler = RichHandler(console=CONSOLE, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    handler.setFormatter(logging.Formatter("%(message)s" if rank == 0 else f"rank {rank}: %(message)s"))
    package = logging.getLogger("trec_semid")
    package.handlers[:] = [handler]
    package.setLevel(level if rank == 0 else logging.WARNING)
    package.propagate = False


class RunLog:
    """JSON-lines events of one rank, and TensorBoard scalars from rank 0.

    `log.jsonl` holds rank 0, `log.rank-N.jsonl` the others. Every line has `time` [s since epoch],
    `event`, `step` where there is one, and plain values. Appended to when a run resumes. Object stores
    cannot append: there both are written whole, every half minute and at the end.
    """

    def __init__(self, folder: str, rank: int = 0, *, tensorboard: bool = False) -> None:
        self.uri = join(make_folder(folder), "log.jsonl" if rank == 0 else f"log.rank-{rank}.jsonl")
        self._local: IO[str] | None = None
        self._remote: list[str] = []
        if is_local(self.uri):
            self._local = open_file(self.uri, "a")
            if _is_cut_off(self.uri):
                self._local.write("\n")  # a crash cut the last line off: it must not swallow the next one
        elif exists(self.uri):
            self._remote = [read_bytes(self.uri).decode()]
        self._folder, self._flushed = folder, time.monotonic()
        self._tensorboard: Any = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        if tensorboard and rank == 0:
            from torch.utils.tensorboard.writer import SummaryWriter  # slow to import

            if not is_local(folder):
                self._scratch = tempfile.TemporaryDirectory(prefix=scratch_prefix())
            self._tensorboard = SummaryWriter(self._scratch.name if self._scratch else filesystem(folder)[1])

    def event(self, event: str, *, step: int | None = None, **values: object) -> None:
        """Append one line."""
        record: dict[str, object] = {"time": round(time.time(), 3), "event": event}
        record |= {"step": step} if step is not None else {}
        line = json.dumps(record | values, default=str) + "\n"
        if self._local:
            self._local.write(line)
            self._local.flush()
        else:
            self._remote.append(line)
            if time.monotonic() - self._flushed > _FLUSH_S:
                self.flush()

    def scalars(self, values: Mapping[str, float], *, step: int, event: str = "scalars") -> None:
        """Append one line of numbers and write each to TensorBoard."""
        self.event(event, step=step, **values)
        if self._tensorboard:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def flush(self) -> None:
        """Make everything said so far visible to readers."""
        if self._remote:
            write_bytes(self.uri, "".join(self._remote).encode())
        if self._tensorboard:
            self._tensorboard.flush()
        if self._scratch:
            for name in find_files(self._scratch.name):
                write_bytes(join(self._folder, name), read_bytes(join(self._scratch.name, name)))
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        if self._local:
            self._local.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._scratch:
            self._scratch.cleanup()


def _is_cut_off(uri: str) -> bool:
    with open_file(uri) as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def read_events(uri: str) -> list[dict[str, Any]]:
    """Return the events of a log file; a last line cut off by a crash is left out."""
    events: list[dict[str, Any]] = []
    for line in read_bytes(uri).decode().splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


class Work:
    """A piece of work with a known or unknown size; `advance` moves its bar."""

    def __init__(self, description: str, total: int | None, *, shown: bool) -> None:
        self._description, self._total, self._shown = description, total, shown
        self._started = self._last_line = time.monotonic()
        self._done = self._done_before = 0
        self._bar: Progress | None = None
        self._task: Any = None
        self._drawing = threading.RLock()

    def advance(self, amount: int = 1) -> None:
        """Say that `amount` more units are done; the bar appears once the work is long enough."""
        self._done += amount
        self.tick()

    def tick(self) -> None:
        """Show how far it is; `working` does so too while one long step runs."""
        now = time.monotonic()
        if not self._shown or now - self._started < _QUIET_S:
            return
        with self._drawing:
            if CONSOLE.is_terminal:
                self._show_bar()
            elif now - self._last_line > 10:
                self._last_line = now
                CONSOLE.print(self._line(now - self._started), highlight=False)

    def restart_clock(self) -> None:
        """Estimate the time left from here on, not from what came before, such as loading a model."""
        self._started = self._last_line = time.monotonic()
        self._done_before = self._done

    def close(self) -> None:
        """Take the bar away."""
        with self._drawing:
            self._shown = False
            if self._bar:
                self._bar.stop()
                self._bar = None
                _SHOWING.release()

    def _show_bar(self) -> None:
        if not self._bar:
            if not _SHOWING.acquire(blocking=False):
                return
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=CONSOLE, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._description, total=self._total)
        self._bar.update(self._task, completed=self._done)

    def _line(self, elapsed_s: float) -> str:
        if not self._total:
            return f"{self._description}: {self._done:,} in {elapsed_s:.0f} s"
        if self._done == self._done_before:
            return f"{self._description}: {self._done:,} of {self._total:,} after {elapsed_s:.0f} s"
        left_s = elapsed_s * (self._total - self._done) / max(self._done - self._done_before, 1)
        return f"{self._description}: {self._done:,} of {self._total:,}, about {left_s:.0f} s left"


@contextmanager
def working(description: str, total: int | None = None, *, shown: bool = True) -> Iterator[Work]:
    """Show a bar with ETA around work of over two seconds; off a terminal, a line every 10 s."""
    work, over = Work(description, total, shown=shown), threading.Event()

    def tick() -> None:
        """Look at the work every `_TICK_S` seconds until it is over."""
        while not over.wait(_TICK_S):
            work.tick()

    if shown:
        threading.Thread(target=tick, name="progress", daemon=True).start()
    try:
        yield work
    finally:
        over.set()
        work.close()


def track(
    items: Iterable[T], description: str, total: int | None = None, *, shown: bool = True
) -> Iterator[T]:
    """Yield the items and show progress over them."""
    with working(description, total, shown=shown) as work:
        for item in items:
            yield item
            work.advance()


def say(text: str) -> None:
    """Print a result to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
