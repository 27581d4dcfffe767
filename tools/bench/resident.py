"""Resident memory of this process, as the kernel counts it (Linux)."""

from pathlib import Path

_FOLDER = Path("/proc/self")


def restart_peak() -> None:
    """Let the peak start anew from what is resident now."""
    (_FOLDER / "clear_refs").write_text("5", encoding="ascii")


def resident_mib() -> float:
    """Return what is resident now [MiB]."""
    return _status_mib("VmRSS")


def peak_mib() -> float:
    """Return the most that was resident since the peak was last restarted [MiB]."""
    return _status_mib("VmHWM")


def _status_mib(key: str) -> float:
    with (_FOLDER / "status").open(encoding="ascii") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key))
