"""Signals while a verb runs: training saves the step it is at, other verbs leave nothing half-written."""

import importlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.ranking import rank_config, write_problem
from trec_semid.checkpoints.folder import latest_step
from trec_semid.cli import main as cli
from trec_semid.core.config import Config, dump_toml
from trec_semid.core.paths import find_files
from trec_semid.jobs import rank
from trec_semid.jobs.tokenize import TokenizeConfig
from trec_semid.tokenizers.rq_kmeans import RqKmeansConfig

STEP = "trec_semid.training.steps:update"
BATCH_OF_EVALUATION = "trec_semid.training.ranking.predict:plain_arguments"
TEST_ROWS = "trec_semid.training.ranking.predict:_scores"
PREPARE = """
name = "tiny"
out = "{out}"
label = {{ kind = "all_positive" }}
split = {{ kind = "leave_one_out" }}
[source]
kind = "tables"
interactions = {{ path = "{out}.csv", user = "u", item = "i", timestamp = "t" }}
"""


class Terminal:
    """The command line in this process, to which a signal comes before a certain call of a function."""

    def __init__(self, patches: pytest.MonkeyPatch, folder: Path) -> None:
        self._patches, self._folder = patches, folder

    def call(self, verb: str, config: Config | str, *at: tuple[str, int, int]) -> int:
        """Run a verb and return the exit code; `at` is function, call and signal."""
        text = config if isinstance(config, str) else dump_toml(config)
        (self._folder / f"{verb}.toml").write_text(text)
        with self._patches.context() as patches:
            patches.setattr(sys, "argv", ["trec-semid", verb, str(self._folder / f"{verb}.toml")])
            for function, nth, number in at:
                _signal_at(patches, function, nth, number)
            with pytest.raises(SystemExit) as stopped:
                cli.main()
        return int(stopped.value.code or 0)


def _signal_at(patches: pytest.MonkeyPatch, at: str, call: int, number: int) -> None:
    module, _, name = at.partition(":")
    owner, calls = importlib.import_module(module), 0
    before = getattr(owner, name)

    def signalling(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(number)
        return before(*args, **named)

    patches.setattr(owner, name, signalling)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Terminal:
    return Terminal(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_problem(str(tmp_path_factory.mktemp("problem")))


CHANGES: dict[str, dict[str, Any]] = {
    "an epoch": {"train": {"evaluation_batch_size": 60}},
    "3 steps": {
        "train": {"evaluation_batch_size": 60, "evaluate_every_steps": 3, "patience": 20},
        "checkpoints": {"in_background": True},
    },
}
TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.fixture(scope="module")
def well(problem: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Metrics of runs that no signal came to, by what they evaluate after."""
    place = tmp_path_factory.mktemp("well")
    return {
        every: rank.run(rank_config(problem, str(place / every.replace(" ", "-")), **changes)).metrics
        for every, changes in CHANGES.items()
    }


@pytest.mark.parametrize(
    ("every", "at", "saved"),
    [
        ("an epoch", (STEP, 1, TERM), {1, 2}),
        ("an epoch", (STEP, 7, INT), {7, 8}),  # the last step of an epoch
        ("an epoch", (STEP, 21, TERM), {21}),  # the last step of all
        ("an epoch", (BATCH_OF_EVALUATION, 1, TERM), {7}),
        ("3 steps", (STEP, 5, TERM), {5, 6}),
        ("3 steps", (BATCH_OF_EVALUATION, 7, INT), {6}),
    ],
)
def test_training_saves_its_step_and_goes_on_to_the_same_result(
    problem: dict[str, Any],
    well: dict[str, dict[str, float]],
    terminal: Terminal,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    *,
    every: str,
    at: tuple[str, int, int],
    saved: set[int],
):
    config = rank_config(problem, str(tmp_path / "run"), **CHANGES[every])
    assert terminal.call("rank", config, at) == 128 + at[2]
    said = capfd.readouterr().err
    assert f"stopped by {signal.Signals(at[2]).name}; the same command goes on where it can" in said
    assert "Traceback" not in said
    assert latest_step(str(tmp_path / "run/checkpoints")) in saved
    assert not (tmp_path / "run/metrics.json").exists()
    assert rank.run(config).metrics == well[every]


def test_signal_after_training_leaves_no_part_of_a_result(
    problem: dict[str, Any], well: dict[str, dict[str, float]], terminal: Terminal, tmp_path: Path
):
    config = rank_config(problem, str(tmp_path / "run"), **CHANGES["an epoch"])
    assert terminal.call("rank", config, (TEST_ROWS, 2, TERM)) == 143
    assert not (tmp_path / "run/metrics.json").exists()
    assert not [name for name in find_files(str(tmp_path / "run")) if "partial" in name]
    assert rank.run(config).metrics == well["an epoch"]


@pytest.mark.parametrize("at", ["trec_semid.data.prepare:write_bytes", "trec_semid.data.folder:write_bytes"])
def test_prepare_leaves_nothing(terminal: Terminal, tmp_path: Path, at: str):
    out = tmp_path / "out"
    (tmp_path / "out.csv").write_text(
        "u,i,t\n" + "".join(f"u{n % 4},i{n % 7},{1_600_000_000 + n}\n" for n in range(40))
    )
    assert terminal.call("prepare", PREPARE.format(out=out), (at, 1, TERM)) == 143
    assert {path.name for path in tmp_path.iterdir()} == {"out.csv", "prepare.toml"}
    assert terminal.call("prepare", PREPARE.format(out=out)) == 0


@pytest.mark.parametrize("at", ["encode_catalogue", "describe_quality", "quality_metrics"])
def test_tokenize_is_not_finished_and_is_made_anew(
    problem: dict[str, Any], terminal: Terminal, tmp_path: Path, at: str
):
    tokenizer = RqKmeansConfig(codebook_size=4, levels=2)
    config = TokenizeConfig(dataset=problem["dataset"], run=str(tmp_path / "run"), tokenizer=tokenizer)
    assert terminal.call("tokenize", config, (f"trec_semid.jobs.tokenize:{at}", 1, INT)) == 130
    assert not (tmp_path / "run/metrics.json").exists()
    assert terminal.call("tokenize", config) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["job"] == "tokenize"


def test_a_signal_while_an_error_is_told_takes_none_of_its_words(
    terminal: Terminal, capfd: pytest.CaptureFixture[str]
):
    at = ("trec_semid.cli.main:complain_of", 1, TERM)
    assert terminal.call("rank", "no_such_key = 1", at) == 2
    assert "no_such_key" in capfd.readouterr().err
