import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.doctor.installations import facts, packages
from trec_semid.core.errors import StackError
from trec_semid.doctor.checks import Check
from trec_semid.jobs import doctor


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
