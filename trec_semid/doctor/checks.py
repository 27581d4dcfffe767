"""What `doctor` makes of its facts: one function a question, each a plain function of the facts."""

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

Status = Literal["ok", "warn", "FAIL"]
TESTED = (
    {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm": "1.8.0"},
    {"torch": "2.11.0", "torchrec": "1.6.1", "fbgemm": "1.6.0"},
)
"""Sets of versions that were built for each other; the first is what the locks install."""
BUILDS = ("fbgemm-gpu-cpu", "fbgemm-gpu")
GIB = 2**30


class Probe(NamedTuple):
    """How a trial in a process of its own ended."""

    ok: bool
    facts: dict[str, Any] = {}
    error: str = ""
    """Last words of a trial that failed; the signal where one killed it."""
    seconds: float = 0.0


class Facts(NamedTuple):
    """What is installed and what the trials said."""

    python: str
    """Command that runs this interpreter, for remedies."""
    version: tuple[int, int]
    packages: dict[str, str]
    """Installed version of torch, torchrec and both builds of fbgemm, where installed."""
    unmet: list[str]
    """Requirements of trec-semid that are missing or out of range."""
    gpus: list[str]
    """Names of the GPUs that the driver lists."""
    site: list[str]
    """Folders that pip installs to."""
    probes: dict[str, Probe]
    memory_bytes: int
    disk_bytes: int
    cores: int


class Check(NamedTuple):
    """One answered question."""

    name: str
    status: Status
    found: str
    remedy: str = ""
    """Command that mends it; empty where nothing needs mending."""


def run_checks(facts: Facts) -> list[Check]:
    """Answer every question that the facts allow."""
    return [check for ask in CHECKS if (check := ask(facts)) is not None]


def check_python(facts: Facts) -> Check:
    """Python is one that every wheel of the lock exists for."""
    state = "{}.{}".format(*facts.version)
    if (3, 11) <= facts.version < (3, 14):
        return Check("Python", "ok", state)
    return Check("Python", "FAIL", f"{state}, expected 3.11 to 3.13", "PYTHON=python3.11 tools/environment")


def check_versions(facts: Facts) -> Check:
    """Versions of torch, torchrec and fbgemm were built for each other."""
    have = {name: facts.packages.get(name, "none") for name in ("torch", "torchrec")}
    have["fbgemm"] = next((facts.packages[name] for name in BUILDS if name in facts.packages), "none")
    expected = _fitting(facts)
    wrong = [name for name in expected if _minor(have[name]) != _minor(expected[name])]
    shown = " + ".join(f"{name} {version}" for name, version in have.items())
    if not wrong:
        exact = all(_release(have[name]) == expected[name] for name in expected)
        return Check(
            "version triple", "ok" if exact else "warn", shown + ("" if exact else ", not a tested set")
        )
    told = "; ".join(f"{name} is {have[name]}, expected {expected[name]}" for name in wrong)
    names = {"torchrec": "torchrec", "fbgemm": _right_build(facts)}
    pins = [f"{names[name]}=={expected[name]}" for name in wrong if name in names]
    steps = [_pip(facts, f"install torch=={expected['torch']}")] if "torch" in wrong else []
    steps += [_pip(facts, f"install --no-deps {' '.join(pins)}")] if pins else []
    return Check("version triple", "FAIL", told, " && ".join(steps))


def check_builds(facts: Facts) -> Check | None:
    """Exactly one build of fbgemm is installed, and it is the one for this machine."""
    have = [name for name in BUILDS if name in facts.packages]
    right = _right_build(facts)
    version = _fitting(facts)["fbgemm"]
    mend = _pip(facts, "uninstall -y fbgemm-gpu fbgemm-gpu-cpu")
    mend += " && " + _pip(facts, f"install --no-deps {right}=={version}")
    if not have:
        return None  # the version triple says so already
    if len(have) > 1:
        state = "fbgemm-gpu and fbgemm-gpu-cpu are both installed: one overwrote files of the other"
        return Check("fbgemm build", "FAIL", state, mend)
    if have[0] == right:
        return Check("fbgemm build", "ok", have[0])
    loads = facts.probes["fbgemm"].ok
    where = f"{len(facts.gpus)} GPU" if facts.gpus else "no GPU"
    return Check("fbgemm build", "warn" if loads else "FAIL", f"{have[0]} on a machine with {where}", mend)


def check_torch(facts: Facts) -> Check:
    """Torch imports, and its build fits the machine; on a CPU machine both builds do."""
    probe = facts.probes["torch"]
    again = _pip(facts, f"install --force-reinstall torch=={_fitting(facts)['torch']}")
    if not probe.ok:
        return Check("torch", "FAIL", probe.error, again)
    cuda, seen = probe.facts.get("cuda"), probe.facts.get("gpus", 0)
    build = f"{probe.facts.get('version')}, " + (f"CUDA {cuda} build" if cuda else "CPU build")
    if facts.gpus and not cuda:
        return Check(
            "torch", "warn", f"{build} on a machine with {len(facts.gpus)} GPU: they stay unused", again
        )
    if facts.gpus and not seen:
        state = f"{build} sees none of the {len(facts.gpus)} GPU: the driver is too old for it, or hidden"
        return Check(
            "torch", "FAIL", state, "nvidia-smi  # compare 'CUDA Version' with the build; update the driver"
        )
    return Check("torch", "ok", build + (f", {seen} GPU" if seen else ", no GPU needed"))


def check_fbgemm(facts: Facts) -> Check:
    """The operators of fbgemm load into this torch: the ABI fits."""
    probe = facts.probes["fbgemm"]
    again = _pip(
        facts, f"install --no-deps --force-reinstall {_right_build(facts)}=={_fitting(facts)['fbgemm']}"
    )
    file = str(probe.facts.get("file"))
    if probe.ok and not any(file.startswith(folder) for folder in facts.site):
        state = f"fbgemm_gpu is read from {file}, not from the installed package"
        return Check("fbgemm ABI", "FAIL", state, "unset PYTHONPATH  # or move that folder away")
    if probe.ok:
        return Check("fbgemm ABI", "ok", "operators load and compute")
    symbol = re.search(r"undefined symbol: (\w+)", probe.error)
    if symbol:
        state = f"fbgemm was compiled against another torch: undefined symbol {symbol[1]}"
        return Check("fbgemm ABI", "FAIL", state, again)
    return Check("fbgemm ABI", "FAIL", probe.error, again)


def check_torchrec(facts: Facts) -> Check | None:
    """A tiny EmbeddingBagCollection looks up and learns."""
    again = _pip(facts, f"install --no-deps --force-reinstall torchrec=={_fitting(facts)['torchrec']}")
    return _check_probe(facts, "torchrec", "torchrec", "embedding bags look up and differentiate", again)


def check_kernels(facts: Facts) -> Check | None:
    """The fused table kernel makes an exact step."""
    build = _right_build(facts)
    again = _pip(facts, f"install --no-deps --force-reinstall {build}=={_fitting(facts)['fbgemm']}")
    return _check_probe(facts, "kernels", "table kernel", "one fused step is exact", again)


def check_gloo(facts: Facts) -> Check | None:
    """Two processes on this machine reach each other."""
    remedy = "GLOO_SOCKET_IFNAME=lo trec-semid doctor  # if this passes, the host's own name does not resolve"
    return _check_probe(facts, "gloo", "gloo", "two processes add up", remedy)


def check_nccl(facts: Facts) -> Check | None:
    """GPUs of this machine reach each other."""
    remedy = "NCCL_DEBUG=INFO trec-semid doctor  # shows where NCCL stops"
    return _check_probe(facts, "nccl", "nccl", "the GPUs add up", remedy)


def check_libraries(facts: Facts) -> Check | None:
    """Every other library of the lock is there and imports."""
    lock = "tools/locks/cuda.lock" if facts.gpus else "tools/locks/cpu.lock"
    again = _pip(facts, f"install --no-deps --require-hashes -r {lock}")
    if facts.unmet:
        return Check("other packages", "FAIL", "; ".join(facts.unmet), again)
    return _check_probe(facts, "libraries", "other packages", "all import", again)


def check_memory(facts: Facts) -> Check:
    """Enough memory is free for the quickstart."""
    state = f"{facts.memory_bytes / GIB:.1f} GiB free"
    if facts.memory_bytes >= 4 * GIB:
        return Check("memory", "ok", state)
    status: Status = "warn" if facts.memory_bytes >= GIB else "FAIL"
    return Check(
        "memory",
        status,
        f"{state}, the quickstart takes up to 4",
        "ps aux --sort=-rss | head  # stop what is large",
    )


def check_disk(facts: Facts) -> Check:
    """Enough disk is free below the current folder for runs and checkpoints."""
    state = f"{facts.disk_bytes / GIB:.1f} GiB free here"
    if facts.disk_bytes >= 2 * GIB:
        return Check("disk", "ok", state)
    status: Status = "warn" if facts.disk_bytes >= GIB / 4 else "FAIL"
    return Check(
        "disk",
        status,
        f"{state}, runs and checkpoints want 2",
        "du -xh -d 2 . | sort -h | tail  # what is large",
    )


def check_cores(facts: Facts) -> Check:
    """Cores that this process may use."""
    return Check("cores", "ok", f"{facts.cores}: give several ranks or workers OMP_NUM_THREADS=1 each")


CHECKS: tuple[Callable[[Facts], Check | None], ...] = (
    check_python, check_versions, check_builds, check_torch, check_fbgemm, check_torchrec, check_kernels,
    check_gloo, check_nccl, check_libraries, check_memory, check_disk, check_cores,
)  # fmt: skip


def _check_probe(facts: Facts, probe_name: str, name: str, good: str, remedy: str) -> Check | None:
    probe = facts.probes.get(probe_name)
    if probe is None:
        return None  # not tried: --quick, no GPU, or what it stands on failed already
    if probe.ok:
        return Check(name, "ok", f"{good} ({probe.seconds:.1f} s)")
    return Check(name, "FAIL", probe.error, remedy)


def _fitting(facts: Facts) -> dict[str, str]:
    """Return the tested set of the installed torch, or the newest."""
    torch = _minor(facts.packages.get("torch", ""))
    return next((tested for tested in TESTED if _minor(tested["torch"]) == torch), TESTED[0])


def _right_build(facts: Facts) -> str:
    return "fbgemm-gpu" if facts.gpus else "fbgemm-gpu-cpu"


def _release(version: str) -> str:
    return version.partition("+")[0]


def _minor(version: str) -> str:
    return ".".join(_release(version).split(".")[:2])


def _pip(facts: Facts, words: str) -> str:
    return f"{facts.python} -m pip {words}"
