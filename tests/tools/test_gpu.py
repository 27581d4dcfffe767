"""tools/gpu on a CPU: that the scripts for a machine with a GPU run, and that their checks can fail."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.commands import run_command

FOLDER = Path(__file__).resolve().parents[2] / "tools/gpu"
PARTS = {"ppnet", "softmax_over_items", "soft_index", "exact_lists", "beam_lists", "checkpoint"}


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_speed_of_every_part_is_told_and_put_into_the_table(tmp_path: Path):
    done = run_command(str(FOLDER / "speed.py"), str(tmp_path), "--small", "--turns", "1")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "speed.json").read_text())
    assert set(told) == PARTS
    assert all(number > 0 for part in told.values() for number in part.values())
    for name in ("against_cpu", "whole_way"):
        (tmp_path / name).mkdir()
        facts = [{"name": f"a check of {name}", "holds": name == "whole_way", "losses_apart": 0.5}]
        (tmp_path / name / f"{name}.json").write_text(json.dumps(facts))
    done = run_command(str(FOLDER / "results.py"), str(tmp_path))
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "results.md").read_text()
    assert "| a check of against_cpu | FAILS: losses_apart 0.5 |" in table
    assert "| a check of whole_way | holds: losses_apart 0.5 |" in table
    assert json.loads((tmp_path / "results.json").read_text())["speed"] == told
    (tmp_path / "speed.json").unlink()
    assert run_command(str(FOLDER / "results.py"), str(tmp_path)).returncode == 1
    assert "| speed | was cut off |" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    ("losses", "metric", "holds"),
    [([0.7, 0.6], 0.5, True), ([0.7, 0.61], 0.5, False), ([0.7, 0.6], 0.52, False)],
)
def test_runs_that_are_apart_do_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: list[float], metric: float, holds: bool
):
    against_cpu = load("against_cpu", monkeypatch)
    for run, values, auc in (("one", [0.7, 0.6], 0.5), ("other", losses, metric)):
        (tmp_path / run).mkdir()
        lines = [json.dumps({"train/loss": value}) for value in values]
        (tmp_path / run / "log.jsonl").write_text("\n".join(lines))
        (tmp_path / run / "metrics.json").write_text(json.dumps({"metrics": {"test/auc": auc}}))
    way: Any = SimpleNamespace(out=tmp_path)
    facts: dict[str, Any] = {}
    if holds:
        against_cpu.compare(way, "one", "other", facts)
    else:
        with pytest.raises(RuntimeError, match="too far apart"):
            against_cpu.compare(way, "one", "other", facts)
    assert facts["metric"] == "test/auc"
