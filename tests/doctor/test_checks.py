import pytest

from tests.doctor.installations import GOOD, check, facts, failing, packages
from trec_semid.doctor.checks import GIB, TESTED, Probe, run_checks


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
