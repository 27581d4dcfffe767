import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.jobs.ranking import events_of, rank_config, run_until, write_problem
from trec_semid.checkpoints.folder import complete_steps
from trec_semid.core.errors import CheckpointError, TrainingError
from trec_semid.jobs.rank import run
from trec_semid.runtime import runs
from trec_semid.training import loop as training_loop


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory):
    return write_problem(str(tmp_path_factory.mktemp("failing")))


def test_metrics_tell_the_time_the_commits_and_the_commands_of_all_processes(
    problem: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "r"
    monkeypatch.setattr(runs, "code_commit", lambda: "first")
    run_until(monkeypatch, rank_config(problem, str(folder)), 9)
    (before,) = json.loads((folder / "processes.json").read_text())
    assert before["wall_s"] > 0
    # As if it had been killed after an hour: what it noted last counts.
    (folder / "processes.json").write_text(json.dumps([{**before, "wall_s": 3600.0}]))
    monkeypatch.setattr(runs, "code_commit", lambda: "second")
    run(rank_config(problem, str(folder), train={"log_every_steps": 7}))
    stated = json.loads((folder / "metrics.json").read_text())
    assert stated["commits"] == ["first", "second"]
    assert stated["commit"] == "second"
    assert len(stated["commands"]) == 1
    assert stated["wall_s"] == pytest.approx(3600 + stated["wall_s_last"], abs=1e-3)
    assert 0 < stated["wall_s_last"] < 600


def test_the_time_of_a_killed_process_is_known_up_to_its_last_checkpoint(
    problem: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "r"
    plain = training_loop.CheckpointWriter.save
    noted: list[float] = []

    def saving(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        noted.append(json.loads((folder / "processes.json").read_text())[-1]["wall_s"])

    monkeypatch.setattr(training_loop.CheckpointWriter, "save", saving)
    run(rank_config(problem, str(folder), train={"max_epochs": 2}))
    times = [event["time"] for event in events_of(folder, "checkpoint")]
    assert noted[1] >= noted[0] + 0.0
    assert json.loads((folder / "processes.json").read_text())[-1]["wall_s"] >= times[1] - times[0]


@pytest.mark.parametrize("changes", [{}, {"checkpoints": {"in_background": True}}])
def test_an_update_that_goes_wrong_in_the_last_step_of_all_is_found(
    problem: dict[str, Any], tmp_path: Path, changes: Any
):
    # One step in all: its loss is that of weights that were still fine.
    changes = {**changes, "train": {"batch_size": 100_000, "max_epochs": 1}}
    changes["optimizers"] = {"tables": {"learning_rate": 3e38}}
    with pytest.raises(
        TrainingError, match=r"step 1: .*t_.* is not finite.*learning rates.*There is no checkpoint yet"
    ):
        run(rank_config(problem, str(tmp_path / "r"), **changes))
    assert complete_steps(str(tmp_path / "r/checkpoints")) == []
    assert not (tmp_path / "r/metrics.json").exists()
    assert not (tmp_path / "r/predictions").exists()


@pytest.mark.parametrize("where", ["dense", "table", "state"])
def test_a_number_that_is_not_finite_in_any_last_step_is_named(
    problem: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    folder = tmp_path / "r"
    plain = training_loop.train_steps

    def poisoned(passes: Any, updates: Any, *args: Any, **kwargs: Any) -> Any:
        for report in plain(passes, updates, *args, **kwargs):
            if report.step == 21:
                named = dict(passes.trained.model.named_parameters())
                name = next(key for key in named if ("t_user_id" in key) == (where == "table"))
                with torch.no_grad():
                    if where == "state":
                        next(iter(updates.dense.state.values()))["exp_avg"][0] = float("inf")
                    else:
                        named[name][-1] = float("nan")
            yield report

    monkeypatch.setattr(training_loop, "train_steps", poisoned)
    expected = {"table": "t_user_id", "dense": "model/", "state": "optimizer/dense/.*exp_avg"}[where]
    with pytest.raises(TrainingError, match=rf"step 21: .*{expected}.* is not finite.*step-\d+"):
        run(rank_config(problem, str(folder)))
    assert 21 not in complete_steps(f"{folder}/checkpoints")
    assert not (folder / "metrics.json").exists()


@pytest.mark.parametrize("in_background", [False, True])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_before_its_metrics(
    problem: dict[str, Any], tmp_path: Path, in_background: bool
):
    folder = tmp_path / "r"
    changes = {"tables": {"dim": 64}, "train": {"max_epochs": 2}}
    config = rank_config(problem, str(folder), **changes, checkpoints={"in_background": in_background})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match="a file may not grow further") as error:
            run(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.exit_code != 0
    assert not (folder / "metrics.json").exists()
    assert complete_steps(f"{folder}/checkpoints") == []
    expected = run(rank_config(problem, str(tmp_path / "whole"), **changes)).metrics
    assert run(config).metrics == expected
