"""What is installed, what the machine has, and how trials of the stack end.

Nothing of the stack is imported here, since a wrong build can kill the interpreter: each trial of `probes.py`
runs in a process of its own, and what it says is read.
"""

import json
import os
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from rich.console import Console

from trec_semid.doctor.checks import BUILDS, Facts, Probe
from trec_semid.runtime.memory import free_memory_bytes

QUICK = ("torch", "fbgemm", "torchrec", "libraries")
FULL = (*QUICK, "kernels", "gloo")
STANDS_ON = {"fbgemm": "torch", "torchrec": "fbgemm", "kernels": "fbgemm", "gloo": "torch", "nccl": "torch"}
"""A trial is left out when the one it stands on failed: the same fault said once is enough."""
_SCRIPT = Path(__file__).with_name("probes.py")
_PATIENCE_S = 300.0


def gather_facts(*, quick: bool = False) -> Facts:
    """Look at the installation, the machine, and try the stack."""
    gpus = list_gpus()
    names = QUICK if quick else (*FULL, "nccl") if gpus else FULL
    return Facts(
        python=shlex.quote(sys.executable),
        version=sys.version_info[:2],
        packages=installed("torch", "torchrec", *BUILDS),
        unmet=unmet_requirements(),
        gpus=gpus,
        site=[*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_paths()["platlib"]],
        probes=try_stack(names),
        memory_bytes=free_memory_bytes(),
        disk_bytes=shutil.disk_usage(".").free,
        cores=num_cores(),
    )


def try_stack(names: tuple[str, ...]) -> dict[str, Probe]:
    """Run the named trials, two at a time, leaving out what stands on one that failed."""
    probes: dict[str, Probe] = {}
    waiting = list(names)
    with ThreadPoolExecutor(max_workers=2) as pool, Console(stderr=True).status("trying the stack"):
        while waiting:
            ready = [name for name in waiting if STANDS_ON.get(name) not in waiting]
            waiting = [name for name in waiting if name not in ready]
            able = [name for name in ready if STANDS_ON.get(name) is None or _worked(probes, STANDS_ON[name])]
            probes |= dict(zip(able, pool.map(try_one, able), strict=True))
    return probes


def try_one(name: str) -> Probe:
    """Run one trial in a process of its own and read its facts or its last words."""
    started = time.monotonic()
    command = [sys.executable, "-P", str(_SCRIPT), name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return Probe(False, error=f"no answer within {_PATIENCE_S:.0f} s", seconds=_PATIENCE_S)
    seconds = round(time.monotonic() - started, 2)
    if done.returncode == 0:
        return Probe(True, json.loads(done.stdout.splitlines()[-1]), seconds=seconds)
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0:
        at = (done.stdout.strip().splitlines() or [f"trying {name}"])[-1]
        return Probe(False, error=f"killed by signal {-done.returncode} while {at}", seconds=seconds)
    return Probe(False, error=_last_words(said), seconds=seconds)


def _last_words(said: list[str]) -> str:
    # A symbol that is missing is the cause, wherever in the traceback it stands.
    symbol = next((line for line in said if "undefined symbol" in line), None)
    return symbol or (said[-1] if said else "failed without a word")


def _worked(probes: dict[str, Probe], name: str) -> bool:
    return name in probes and probes[name].ok


def installed(*names: str) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def unmet_requirements() -> list[str]:
    """Return the requirements of trec-semid, extras aside, that are missing or out of range."""
    from packaging.requirements import Requirement

    unmet: list[str] = []
    for text in _requirements():
        need = Requirement(text)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        have = installed(need.name).get(need.name)
        if have is None:
            unmet.append(f"{need.name} is missing")
        elif not need.specifier.contains(have, prereleases=True):
            unmet.append(f"{need.name} is {have}, expected {need.specifier}")
    return unmet


def _requirements() -> list[str]:
    try:
        return metadata.requires("trec-semid") or []
    except metadata.PackageNotFoundError:
        return []  # run from a checkout that is not installed


def list_gpus() -> list[str]:
    """Return the GPUs that NVIDIA's driver lists, none without a driver."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def num_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
