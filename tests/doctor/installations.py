"""Installations as `doctor` may meet them: a good one, and what is changed of it."""

from trec_semid.doctor.checks import GIB, Check, Facts, Probe, run_checks

SITE = "/env/site-packages"
GOOD = {
    "torch": Probe(True, {"version": "2.13.0+cpu", "cuda": None, "gpus": 0}),
    "fbgemm": Probe(True, {"file": f"{SITE}/fbgemm_gpu/__init__.py", "version": "1.8.0"}),
    "torchrec": Probe(True, {}),
    "libraries": Probe(True, {}),
    "kernels": Probe(True, {}),
    "gloo": Probe(True, {}),
}


def facts(**changes: object) -> Facts:
    whole = {
        "python": "/env/bin/python",
        "version": (3, 11),
        "packages": {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"},
        "unmet": [],
        "gpus": [],
        "site": [SITE],
        "probes": dict(GOOD),
        "memory_bytes": 8 * GIB,
        "disk_bytes": 50 * GIB,
        "cores": 2,
    }
    return Facts(**(whole | changes))


def check(name: str, **changes: object) -> Check:
    return next(one for one in run_checks(facts(**changes)) if one.name == name)


def packages(**versions: str) -> dict[str, str]:
    whole = {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}
    return {name: version for name, version in (whole | versions).items() if version}


def failing(name: str, error: str) -> dict[str, Probe]:
    return GOOD | {name: Probe(False, error=error)}
