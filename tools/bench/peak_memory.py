"""Peak of the memory that a command and all its processes hold together (Linux).

    .venv/bin/python tools/bench/peak_memory.py COMMAND...
    .venv/bin/python tools/bench/peak_memory.py tools/quickstart

Every 0.2 s the memory of the command's process and all its descendants is summed: proportional set size
(a page that n processes share counts 1/n in each, also where some of the n are not the command's: let
nothing else of the kind run) where the kernel tells it, else resident set size. A spike between two looks
is missed, and so is a process whose parent has ended. Processor seconds, and the largest resident set that
a single process ever had, are the kernel's own account of the command and of all that it and its
descendants waited for. The command's output stays as it is; the line with the numbers goes to standard
error; the exit status is the command's.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

INTERVAL_S = 0.2
KCMP = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine)
"""Number of the system call that says whether two processes have one memory."""
KCMP_VM = 1
LIBC = ctypes.CDLL(None)


class Taken(NamedTuple):
    """What a command took."""

    peak_kib: int
    num_processes: int
    """Of the moment of the peak."""
    largest_kib: int
    """Of one process."""
    wall_s: float
    processor_s: float
    exit_code: int
    """Below 0: ended by that signal."""


def children_of_all() -> dict[int, list[int]]:
    """Return the children of every process."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text()
        except OSError:  # gone meanwhile
            continue
        parent = int(status.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(folder.name))
    return children


def tree(root: int) -> list[int]:
    """Return a process and its descendants, each memory once."""
    children, found = children_of_all(), [root]
    for process in found:  # grows while it is walked
        found += [child for child in children.get(process, []) if not is_being_started(child, process)]
    return found


def is_being_started(child: int, parent: int) -> bool:
    """Tell whether a child still works in its parent's memory, as one does before it runs its program."""
    return KCMP is not None and LIBC.syscall(KCMP, child, parent, KCMP_VM, 0, 0) == 0


def held_kib(process: int) -> int:
    """Return the memory of one process [KiB]; 0 where it is gone."""
    for name, key in (("smaps_rollup", "Pss"), ("status", "VmRSS")):
        try:
            said = Path(f"/proc/{process}/{name}").read_text()
        except OSError:  # gone, or another user's
            continue
        value = re.search(rf"^{key}:\s+(\d+) kB$", said, re.M)
        if value:
            return int(value[1])
    return 0


def watch(command: int) -> Taken:
    """Look at a process and its descendants until it has ended."""
    started = time.monotonic()
    peak_kib = num_processes = 0
    while True:
        ended, status, usage = os.wait4(command, os.WNOHANG)
        if ended:
            break
        held = [held_kib(process) for process in tree(command)]
        if sum(held) > peak_kib:
            peak_kib, num_processes = sum(held), len(held)
        time.sleep(INTERVAL_S)
    wall_s = time.monotonic() - started
    processor_s, exit_code = usage.ru_utime + usage.ru_stime, os.waitstatus_to_exitcode(status)
    return Taken(peak_kib, num_processes, usage.ru_maxrss, wall_s, processor_s, exit_code)


def main(words: list[str]) -> int:
    """Run the command and tell what it took."""
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    try:
        command = subprocess.Popen(words)
    except OSError as error:
        print(f"peak_memory: {words[0]}: {error.strerror}", file=sys.stderr)
        return 127
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command as well: it decides
    taken = watch(command.pid)
    print(
        f"peak_memory: {taken.peak_kib / 1024:,.0f} MiB in {taken.num_processes} processes, "
        f"largest {taken.largest_kib / 1024:,.0f} MiB resident, "
        f"wall {taken.wall_s:.1f} s, processor {taken.processor_s:.1f} s",
        file=sys.stderr,
    )
    return taken.exit_code if taken.exit_code >= 0 else 128 - taken.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
