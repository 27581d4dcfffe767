import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from trec_semid.core.errors import StackError
from trec_semid.doctor.checks import GIB, TESTED, Check, Facts, Probe, run_checks
from trec_semid.doctor.probes import PROBES
from trec_semid.jobs import doctor

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


def test_nothing_is_wrong_with_a_good_installation():
    assert {one.status for one in run_checks(facts())} == {"ok"}


@pytest.mark.parametrize("tested", TESTED)
def test_tested_sets_pass_with_both_builds_of_torch_on_a_machine_without_gpu(tested: dict[str, str]):
    for suffix, cuda in (("+cpu", None), ("", "13.0")):
        version = tested["torch"] + suffix
        have = {"torch": version, "torchrec": tested["torchrec"], "fbgemm-gpu-cpu": tested["fbgemm"]}
        probes = GOOD | {"torch": Probe(True, {"version": version, "cuda": cuda, "gpus": 0})}
        assert {one.status for one in run_checks(facts(packages=have, probes=probes))} == {"ok"}


def test_wrong_torchrec_is_named_with_the_one_command_that_mends_it():
    found = check("version triple", packages=packages(torchrec="1.6.1"))
    assert found.status == "FAIL"
    assert found.found == "torchrec is 1.6.1, expected 1.8.0"
    assert found.remedy == "/env/bin/python -m pip install --no-deps torchrec==1.8.0"


def test_wrong_fbgemm_is_mended_towards_the_set_of_the_installed_torch():
    have = packages(torch="2.11.0", torchrec="1.6.1", **{"fbgemm-gpu-cpu": "1.8.0"})
    found = check("version triple", packages=have)
    assert found.found == "fbgemm is 1.8.0, expected 1.6.0"
    assert found.remedy.endswith("install --no-deps fbgemm-gpu-cpu==1.6.0")


def test_torch_of_no_tested_set_is_replaced_before_the_others():
    found = check("version triple", packages=packages(torch="2.9.1", torchrec="1.4.0"))
    first, second = found.remedy.split(" && ")
    assert first.endswith("pip install torch==2.13.0")
    assert second.endswith("pip install --no-deps torchrec==1.8.0")


def test_another_patch_release_only_warns():
    found = check("version triple", packages=packages(torch="2.13.1"))
    assert found.status == "warn"
    assert "not a tested set" in found.found


def test_missing_package_is_named():
    found = check("version triple", packages=packages(torchrec=""))
    assert found.found == "torchrec is none, expected 1.8.0"


def test_both_builds_of_fbgemm_overwrite_each_other():
    found = check("fbgemm build", packages=packages(**{"fbgemm-gpu": "1.8.0"}))
    assert found.status == "FAIL"
    away, back = found.remedy.split(" && ")
    assert away.endswith("pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu")
    assert back.endswith("pip install --no-deps fbgemm-gpu-cpu==1.8.0")


def test_cuda_build_of_fbgemm_that_does_not_load_fails_on_a_machine_without_gpu():
    have = packages(**{"fbgemm-gpu-cpu": "", "fbgemm-gpu": "1.8.0"})
    probes = failing("fbgemm", "OSError: Could not load this library: fbgemm_gpu_config.so")
    found = check("fbgemm build", packages=have, probes=probes)
    assert (found.status, found.found) == ("FAIL", "fbgemm-gpu on a machine with no GPU")
    assert check("fbgemm build", packages=have).status == "warn"


def test_machine_with_a_gpu_wants_the_cuda_builds():
    warned = {one.name: one for one in run_checks(facts(gpus=["GPU 0"])) if one.status != "ok"}
    assert set(warned) == {"fbgemm build", "torch"}
    assert warned["fbgemm build"].remedy.endswith("install --no-deps fbgemm-gpu==1.8.0")
    assert "they stay unused" in warned["torch"].found


def test_driver_that_is_too_old_for_torch_is_told_apart_from_a_cpu_build():
    probes = GOOD | {"torch": Probe(True, {"version": "2.13.0", "cuda": "13.0", "gpus": 0})}
    found = check("torch", gpus=["GPU 0"], probes=probes)
    assert found.status == "FAIL"
    assert "driver is too old" in found.found


def test_undefined_symbol_is_named_as_the_abi_that_does_not_fit():
    error = "OSError: /x/fbgemm_gpu_py.so: undefined symbol: _ZN3c105ErrorC2Ev"
    found = check("fbgemm ABI", probes=failing("fbgemm", error))
    assert found.found == "fbgemm was compiled against another torch: undefined symbol _ZN3c105ErrorC2Ev"
    assert found.remedy.endswith("install --no-deps --force-reinstall fbgemm-gpu-cpu==1.8.0")


def test_fbgemm_from_another_folder_is_told():
    probes = GOOD | {"fbgemm": Probe(True, {"file": "/home/me/fbgemm_gpu/__init__.py"})}
    found = check("fbgemm ABI", probes=probes)
    assert found.status == "FAIL"
    assert "/home/me/fbgemm_gpu/__init__.py" in found.found


@pytest.mark.parametrize(
    ("name", "shown"),
    [("torch", "torch"), ("torchrec", "torchrec"), ("kernels", "table kernel"), ("gloo", "gloo")],
)
def test_failed_trial_fails_its_check_with_its_last_words_and_a_remedy(name: str, shown: str):
    found = check(shown, probes=failing(name, "RuntimeError: no"))
    assert (found.status, found.found) == ("FAIL", "RuntimeError: no")
    assert found.remedy


def test_missing_requirement_fails_although_all_imports_pass():
    found = check("other packages", unmet=["tomli-w is missing"])
    assert (found.status, found.found) == ("FAIL", "tomli-w is missing")
    assert "tools/locks/cpu.lock" in found.remedy


@pytest.mark.parametrize(("free", "status"), [(8, "ok"), (2, "warn"), (0.1, "FAIL")])
def test_memory_and_disk_have_floors(free: float, status: str):
    assert check("memory", memory_bytes=int(free * GIB)).status == status
    assert check("disk", disk_bytes=int(free * GIB * 0.7)).status == status


@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_other_python_is_refused(version: tuple[int, int]):
    assert check("Python", version=version).status == "FAIL"


def test_trials_that_stand_on_a_failed_one_are_left_out(monkeypatch: pytest.MonkeyPatch):
    tried: list[str] = []

    def fake(name: str) -> Probe:
        tried.append(name)
        return Probe(name not in ("fbgemm",))

    monkeypatch.setattr(doctor, "try_one", fake)
    probes = doctor.try_stack((*doctor.FULL, "nccl"))
    assert set(tried) == set(probes) == {"torch", "libraries", "fbgemm", "gloo", "nccl"}
    assert "torchrec" not in {one.name for one in run_checks(facts(probes=probes))}


def test_trial_that_never_answers_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    script = tmp_path / "probes.py"
    script.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "_SCRIPT", script)
    monkeypatch.setattr(doctor, "_PATIENCE_S", 0.5)
    assert "no answer" in doctor.try_one("torch").error


def test_trial_that_is_killed_tells_the_signal_and_where_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    script = tmp_path / "probes.py"
    script.write_text("import os\nprint('importing faiss', flush=True)\nos.kill(os.getpid(), 11)")
    monkeypatch.setattr(doctor, "_SCRIPT", script)
    assert doctor.try_one("libraries").error == "killed by signal 11 while importing faiss"


def test_remedies_are_printed_unbroken():
    out = io.StringIO()
    remedy = "python -m pip install " + "x" * 200
    doctor.show([Check("a", "FAIL", "b [c]", remedy), Check("d", "ok", "e", "")], Console(file=out, width=60))
    assert f"  {remedy}\n" in out.getvalue()
    assert "b [c]" in out.getvalue()


def test_long_names_are_folded_never_cut():
    out = io.StringIO()
    doctor.show([Check("a", "ok", "_ZN5torch" * 20, "")], Console(file=out, width=60))
    assert "".join(out.getvalue().split()).count("_ZN5torch") == 20


def test_failed_check_is_an_error_with_exit_code_1(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "gather_facts", lambda quick: facts(packages=packages(torchrec="1.0")))
    with pytest.raises(StackError, match="1 of 12 checks failed: version triple") as caught:
        doctor.run()
    assert caught.value.exit_code == 1


def test_this_environment_has_no_unmet_requirement():
    assert doctor.unmet_requirements() == []


def test_every_trial_is_known():
    assert set(doctor.FULL) | {"nccl"} == set(PROBES)


def start_doctor(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trec_semid.cli.main", "doctor", *words]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_doctor_finds_this_very_installation_sound():
    done = start_doctor("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert {one["name"] for one in found["checks"]} >= {
        "version triple",
        "fbgemm ABI",
        "table kernel",
        "gloo",
    }
    assert found["facts"]["probes"]["gloo"]["facts"] == {"processes": 2}


def test_doctor_names_a_broken_fbgemm_that_shadows_the_installed_one(tmp_path: Path):
    fake = tmp_path / "fbgemm_gpu"
    fake.mkdir()
    words = "fbgemm_gpu_py.so: undefined symbol: _ZN5torch8autogradE"
    (fake / "__init__.py").write_text(f"raise OSError({words!r})")
    done = start_doctor("--quick", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "undefined symbol _ZN5torch8autogradE" in " ".join(done.stdout.split())
    assert "pip install --no-deps --force-reinstall fbgemm-gpu" in done.stdout
    assert "fbgemm ABI" in done.stderr
    assert "Traceback" not in done.stderr
