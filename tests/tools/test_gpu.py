"""tools/gpu on a CPU: what of it runs without a GPU, and that its checks can fail.

`EVENTS=5000 tools/gpu/run_all.sh OUT --dry-run` runs all parts, in some minutes.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.commands import run_command
from trec_semid.core.config import load_config
from trec_semid.jobs.rank import RankConfig

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


def compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch, losses: list[float], metric: float
) -> dict[str, Any]:
    """Compare a run of losses .7 and .6 and a metric of .5 with another one."""
    for run, values, auc in (("one", [0.7, 0.6], 0.5), ("other", losses, metric)):
        (folder / run).mkdir()
        lines = [json.dumps({"train/loss": value}) for value in values]
        (folder / run / "log.jsonl").write_text("\n".join(lines))
        (folder / run / "metrics.json").write_text(json.dumps({"metrics": {"test/auc": auc}}))
    way: Any = SimpleNamespace(out=folder)
    facts: dict[str, Any] = {}
    load("against_cpu", monkeypatch).compare(way, "one", "other", facts)
    return facts


def test_runs_that_are_alike_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    facts = compared(tmp_path, monkeypatch, [0.7005, 0.6], 0.501)
    assert facts["losses_apart"] == pytest.approx(0.0005 / 0.7005)
    assert facts["metrics_apart"] == pytest.approx(0.001)
    assert facts["metric"] == "test/auc"


@pytest.mark.parametrize(
    ("losses", "metric"),
    [([0.7, 0.61], 0.5), ([0.7, 0.6], 0.52), ([0.7, float("nan")], 0.5), ([0.7, 0.6], float("nan"))],
)
def test_runs_that_are_apart_do_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: list[float], metric: float
):
    with pytest.raises(RuntimeError, match="too far apart"):
        compared(tmp_path, monkeypatch, losses, metric)


def test_runs_that_logged_nothing_do_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    against_cpu = load("against_cpu", monkeypatch)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/log.jsonl").write_text("")
    (tmp_path / "a/metrics.json").write_text('{"metrics": {"test/auc": 0.5}}')
    with pytest.raises(RuntimeError, match="logged no loss"):
        against_cpu.compare(SimpleNamespace(out=tmp_path), "a", "a", {})


def test_settings_of_host_tables_are_of_tables_that_there_are(monkeypatch: pytest.MonkeyPatch):
    against_cpu = load("against_cpu", monkeypatch)
    for kernel in against_cpu.HOST_TABLES.values():
        sets = [f"{key}={json.dumps(value)}" for key, value in against_cpu.by_kernel(kernel).items()]
        config = load_config(RankConfig, [], ["dataset=d", "run=r", "representation=item", *sets])
        assert config.sharding.tables["t_*"].kernels == [kernel]


@pytest.mark.parametrize("words", [[], ["--dry-run"], ["."]])
def test_a_place_that_is_none_or_is_taken_is_refused_and_nothing_is_removed(tmp_path: Path, words: list[str]):
    (tmp_path / "mine").write_text("x")
    done = subprocess.run(
        [str(FOLDER / "run_all.sh"), *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "usage" in done.stderr or "is there already" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]
