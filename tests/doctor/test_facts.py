from pathlib import Path

import pytest

from tests.doctor.installations import facts
from trec_semid.doctor import facts as stack
from trec_semid.doctor.checks import Probe, run_checks
from trec_semid.doctor.probes import PROBES


def test_trials_that_stand_on_a_failed_one_are_left_out(monkeypatch: pytest.MonkeyPatch):
    tried: list[str] = []

    def fake(name: str) -> Probe:
        tried.append(name)
        return Probe(name not in ("fbgemm",))

    monkeypatch.setattr(stack, "try_one", fake)
    probes = stack.try_stack((*stack.FULL, "nccl"))
    assert set(tried) == set(probes) == {"torch", "libraries", "fbgemm", "gloo", "nccl"}
    assert "torchrec" not in {one.name for one in run_checks(facts(probes=probes))}


def test_trial_that_never_answers_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    script = tmp_path / "probes.py"
    script.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(stack, "_SCRIPT", script)
    monkeypatch.setattr(stack, "_PATIENCE_S", 0.5)
    assert "no answer" in stack.try_one("torch").error


def test_trial_that_is_killed_tells_the_signal_and_where_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    script = tmp_path / "probes.py"
    script.write_text("import os\nprint('importing faiss', flush=True)\nos.kill(os.getpid(), 11)")
    monkeypatch.setattr(stack, "_SCRIPT", script)
    assert stack.try_one("libraries").error == "killed by signal 11 while importing faiss"


def test_this_environment_has_no_unmet_requirement():
    assert stack.unmet_requirements() == []


def test_every_trial_is_known():
    assert set(stack.FULL) | {"nccl"} == set(PROBES)
