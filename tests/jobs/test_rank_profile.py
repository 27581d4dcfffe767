"""What a run says of its steps: time by part, and a trace of those that its config names."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.jobs.ranking import events_of, losses_of, rank_config, run_until, write_problem
from tests.ranks import run_ranks
from trec_semid.data.batches import RankingBatch
from trec_semid.jobs.rank import run

PARTS = {"input", "forward", "backward", "optimizer", "between"}


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_problem(str(tmp_path_factory.mktemp("profiled")))


def traced(run_folder: Any, rank: int = 0) -> list[str]:
    """Return the names of what a rank's trace says began, in the order of time."""
    with gzip.open(f"{run_folder}/profile/rank-{rank}.json.gz") as file:
        said = [one for one in json.load(file)["traceEvents"] if one.get("ph") == "X"]
    return [one["name"] for one in sorted(said, key=lambda one: one["ts"])]


def count(names: list[str], name: str) -> int:
    return sum(one == name for one in names)


@pytest.mark.parametrize("pipeline", ["plain", "sparse_dist"])
def test_steps_that_are_named_are_traced_and_no_others(
    problem: dict[str, Any], tmp_path: Path, pipeline: str
):
    config = rank_config(
        problem,
        str(tmp_path / "r"),
        profile={"steps": [6, 9]},
        train={"pipeline": pipeline, "max_epochs": 2, "accumulate": 2},
    )
    run(config)
    names = traced(tmp_path / "r")
    # Four steps an epoch, the last of one batch: steps 6 to 8 have 2 + 2 + 1 batches, and there is no step 9.
    assert count(names, "forward") == 5
    assert count(names, "Optimizer.step#AdamW.step") == 3
    backward = "backward" if pipeline == "plain" else "## backward"
    assert sum(name.startswith(backward) for name in names) == 5
    untraced = rank_config(
        problem, str(tmp_path / "other"), train={"pipeline": pipeline, "max_epochs": 2, "accumulate": 2}
    )
    run(untraced)
    assert losses_of(config.run) == losses_of(untraced.run)
    assert not (tmp_path / "other/profile").exists()


def test_a_run_that_goes_on_inside_the_named_steps_traces_those_that_are_left(
    problem: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    changes: dict[str, Any] = {"checkpoints": {"every_steps": 1}, "train": {"max_epochs": 1}}
    config = rank_config(problem, str(tmp_path / "r"), **changes, profile={"steps": [3, 5]})
    run_until(monkeypatch, config, 4)
    assert count(traced(tmp_path / "r"), "forward") == 2, "what was traced before it was interrupted"
    run(config)
    assert count(traced(tmp_path / "r"), "forward") == 1
    elsewhere = rank_config(problem, config.run, **changes, profile={"steps": [100, 200]})
    run(elsewhere)
    assert count(traced(tmp_path / "r"), "forward") == 1, (
        "the run is done, and may be asked for another trace"
    )


def profiled_on_ranks(problem: dict[str, Any], folder: str) -> list[dict[str, Any]]:
    """Train on this rank among others, and return what rank 0 logged."""
    train = {"pipeline": "sparse_dist", "max_epochs": 1, "evaluate_every_steps": 3, "log_every_steps": 2}
    run(rank_config(problem, folder, profile={"steps": [2, 3]}, train=train))
    return events_of(folder, "scalars")


@pytest.mark.ranks
def test_ranks_trace_each_and_time_by_part_is_logged_and_shown(problem: dict[str, Any], tmp_path: Path):
    folder = str(tmp_path / "r")
    said, _ = run_ranks(profiled_on_ranks, 2, problem, folder)
    for rank in (0, 1):
        assert count(traced(folder, rank), "forward") == 2
    assert [line["step"] for line in said] == [2, 4, 6]
    evaluated = [4]  # step 3 was, after the line of step 2
    for line in said:
        parts = {key.removeprefix("time/").removesuffix("_ms") for key in line if key.startswith("time/")}
        assert parts == PARTS | {"exchange"} | (
            {"evaluation", "checkpoint"} if line["step"] in evaluated else set()
        )
        assert all(line[f"time/{part}_ms"] > 0 for part in parts)
    shown = EventAccumulator(folder).Reload()
    assert [one.step for one in shown.Scalars("time/backward_ms")] == [2, 4, 6]
    assert [one.value for one in shown.Scalars("time/input_ms")] == pytest.approx(
        [line["time/input_ms"] for line in said]
    )


def test_parts_add_up_to_no_more_than_the_time_of_training(problem: dict[str, Any], tmp_path: Path):
    folder = str(tmp_path / "r")
    run(rank_config(problem, folder, train={"max_epochs": 2, "log_every_steps": 7}))
    first, second = events_of(folder, "scalars")
    between = second["time"] - first["time"]
    parts = {key: value for key, value in second.items() if key.startswith("time/")}
    assert {key.removeprefix("time/").removesuffix("_ms") for key in parts} == PARTS | {
        "evaluation",
        "checkpoint",
    }
    assert 0.5 * between < sum(parts.values()) * 7 / 1e3 < between + 0.01


@pytest.mark.parametrize("pipeline", ["plain", "sparse_dist"])
def test_the_copy_to_the_device_is_time_of_the_input(
    problem: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: str
):
    copy = RankingBatch.to

    def slow_copy(self: RankingBatch, *args: Any, **named: Any) -> RankingBatch:
        time.sleep(0.05)
        return copy(self, *args, **named)

    monkeypatch.setattr(RankingBatch, "to", slow_copy)
    train = {"max_epochs": 1, "log_every_steps": 7, "pipeline": pipeline}
    run(rank_config(problem, str(tmp_path / "r"), train=train))
    (said,) = events_of(tmp_path / "r", "scalars")
    assert said["time/input_ms"] >= 50  # seven copies in seven steps


def test_steps_that_make_no_sense_are_refused(problem: dict[str, Any], tmp_path: Path):
    with pytest.raises(ValidationError, match=r"last step \(2\) comes before the first \(5\)"):
        rank_config(problem, str(tmp_path / "r"), profile={"steps": [5, 2]})
    with pytest.raises(ValidationError, match="greater than 0"):
        rank_config(problem, str(tmp_path / "r"), profile={"steps": [0, 2]})
