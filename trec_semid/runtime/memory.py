"""What memory this process may have: the machine's, or less where a container has a limit."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def total_memory_bytes(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Return the memory that this process and its siblings may fill [bytes].

    Args:
        groups: where control groups are mounted.
        own: says in which group this process is.
    """
    return min([_machine_bytes(), *(group.limit for group in _limits(groups, own))])


def free_memory_bytes(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Return the memory that can be had without swapping [bytes]; arguments as above.

    Files that a group has read count as its memory until somebody needs the room, so they are left out.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = _machine_bytes()
    return min([free, *(group.limit - group.used for group in _limits(groups, own))])


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class _Limit(NamedTuple):
    limit: int
    used: int


def _limits(groups: Path, own: Path) -> Iterator[_Limit]:
    """Yield the limits of this process's group and of all above it: the smallest of them counts.

    A container may see its own group as the root, or the host's path that it has no such folder of.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2: one tree for all
            root, files = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):  # version 1: a tree a controller
            root = groups / "memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.strip("/")
        for folder in [group, *group.parents]:
            with suppress(OSError, ValueError):  # no such folder, or 'max': no limit
                limit, used = (int((folder / file).read_text()) for file in files[:2])
                yield _Limit(limit, max(used - _read_files(folder, files[2]), 0))
            if folder == root:
                break


def _read_files(folder: Path, key: str) -> int:
    """Return the bytes of files that a group holds in memory and did not use lately."""
    with suppress(OSError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key and value.isdecimal():
                return int(value)
    return 0
