"""Which process is this, and does another one still live: what locks and leftovers are judged by."""

import math
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256

import psutil

_SAME_START_S = 1.0
"""Two starts that differ by less are one: the kernel counts in hundredths, the time of boot in seconds."""
_SCRATCH = re.compile(r"trec-semid-(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<started>\d+)-\w+")


@dataclass(frozen=True)
class ProcessId:
    """A process, told from every other one, also from later ones of the same number."""

    host: str
    machine: str
    """Tells since which boot, and in which container, `pid` counts: only there can it be looked up."""
    pid: int
    started: float
    """When it started [s after boot], which no change of the clock moves."""

    def is_here(self) -> bool:
        """Return whether this process can see that one, or that it is gone."""
        return self.machine == _machine()

    def is_alive(self) -> bool:
        """Return whether it still runs; ask only where `is_here`."""
        started = _start_of(self.pid)
        # Not a number, where one may not look, passes as alive.
        return started is not None and not abs(started - self.started) >= _SAME_START_S


def this_process() -> ProcessId:
    """Return this process; after a fork, the child."""
    pid = os.getpid()
    return ProcessId(socket.gethostname(), _machine(), pid, _start_of(pid) or 0.0)


def scratch_prefix() -> str:
    """Return how names of this process's temporary folders begin, so that others see when it is gone."""
    me = this_process()
    return f"trec-semid-{me.machine}-{me.pid}-{round(me.started * 100)}-"


@contextmanager
def scratch_folder() -> Iterator[str]:
    """Yield a temporary folder on a local disk, which vanishes with the block."""
    with tempfile.TemporaryDirectory(prefix=scratch_prefix()) as folder:
        yield folder


def sweep_scratch() -> list[str]:
    """Remove temporary folders that processes of this machine left when they were killed; return which."""
    root, removed = tempfile.gettempdir(), []
    for name in sorted(os.listdir(root)):
        named = _SCRATCH.fullmatch(name)
        if named is None:
            continue
        owner = ProcessId("", named["machine"], int(named["pid"]), int(named["started"]) / 100)
        if owner.is_here() and not owner.is_alive():
            shutil.rmtree(os.path.join(root, name), ignore_errors=True)
            removed.append(os.path.join(root, name))
    return removed


@cache
def _machine() -> str:
    parts = [socket.gethostname(), str(round(psutil.boot_time()))]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if path.endswith("pid") else _text_of(path))
        except OSError:  # not Linux
            continue
    # Where the kernel names its boot, that is exact; the time of boot follows the clock.
    exact = parts[2:] or parts
    return sha256("\n".join([parts[0], *exact]).encode()).hexdigest()[:8]


def _text_of(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


def _start_of(pid: int) -> float | None:
    """Return when a process started [s after boot]; None where none runs."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return round(process.create_time() - psutil.boot_time(), 2)
    except psutil.AccessDenied:
        return math.nan
    except psutil.Error:
        return None
