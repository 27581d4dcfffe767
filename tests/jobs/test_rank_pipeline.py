"""A run whose steps are pipelined: stopped and gone on with, it is the plain run that was never stopped."""

from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import ValidationError

from tests.jobs.ranking import events_of, losses_of, rank_config, run_until, write_problem
from tests.jobs.retrieving import retrieve_config
from tests.ranks import run_ranks
from trec_semid.checkpoints.folder import complete_steps
from trec_semid.jobs.rank import run
from trec_semid.runtime.stopping import Stopped
from trec_semid.training import loop as training_loop

OFTEN = {"checkpoints": {"every_steps": 3}, "model": {"dropout": 0.3}}
CASES: dict[str, dict[str, Any]] = {
    "at the end of an epoch": {},
    "in between": {"evaluate_every_steps": 4},
    "two batches a step": {"accumulate": 2, "evaluate_every_steps": 3},
}
"""When it is evaluated; seven batches an epoch."""


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_problem(str(tmp_path_factory.mktemp("pipelined")))


def facts_of(config: Any) -> dict[str, Any]:
    """Run, and return all that a run comes to."""
    metrics = run(config).metrics
    said = events_of(config.run, "evaluate")
    for event in said:
        del event["time"]
    return {"metrics": metrics, "losses": losses_of(config.run), "evaluated": said}


@pytest.fixture(scope="module")
def plain(problem: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("plain")
    return {
        name: facts_of(rank_config(problem, str(folder / name), **OFTEN, train=train))
        for name, train in CASES.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_a_pipelined_run_equals_the_plain_one(
    problem: dict[str, Any], plain: dict[str, dict[str, Any]], tmp_path: Path, name: str
):
    train = {**CASES[name], "pipeline": "sparse_dist"}
    assert facts_of(rank_config(problem, str(tmp_path / "r"), **OFTEN, train=train)) == plain[name]


class Killed(NamedTuple):
    case: str
    step: int
    then: str
    """How it goes on: the pipeline is no part of what a run is."""


@pytest.mark.parametrize(
    "killed", [Killed(*one) for one in product(CASES, (5, 9), ("sparse_dist", "plain"))], ids=str
)
def test_a_pipelined_run_that_was_killed_goes_on_as_if_it_had_not_been(
    problem: dict[str, Any],
    plain: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: Killed,
):
    case, folder = CASES[killed.case], str(tmp_path / "r")
    train = {**case, "pipeline": "sparse_dist"}
    run_until(monkeypatch, rank_config(problem, folder, **OFTEN, train=train), killed.step)
    again = run(rank_config(problem, folder, **OFTEN, train={**train, "pipeline": killed.then}))
    assert again.metrics == plain[killed.case]["metrics"]
    (resumed,) = events_of(folder, "resume")
    assert resumed["step"] == max(saved_until(killed.step, case))


def saved_until(last: int, train: dict[str, Any]) -> list[int]:
    """Return the steps that were saved before a run was interrupted after its step `last`."""
    every = train.get("evaluate_every_steps", 7)
    return [step for step in range(1, last + 1) if step % every == 0 or step % 3 == 0]


def stop_and_go_on(problem: dict[str, Any], folder: str) -> dict[str, Any]:
    """Ask a pipelined run to end after its step 9, and go on with it."""
    config = rank_config(
        problem, folder, model={"dropout": 0.3}, train={"pipeline": "sparse_dist", "evaluate_every_steps": 4}
    )
    with pytest.MonkeyPatch.context() as patch:
        asked = iter([*[False] * 8, True])
        patch.setattr(training_loop.SharedSignal, "is_asked", lambda self: next(asked))
        patch.setattr(training_loop, "signal_on_any_rank", lambda: 15)
        with pytest.raises(Stopped):
            run(config)
    saved = complete_steps(f"{folder}/checkpoints")
    again = run(config).metrics
    whole = rank_config(problem, f"{folder}-plain", model={"dropout": 0.3}, train={"evaluate_every_steps": 4})
    return {
        "saved": saved,
        "metrics": again,
        "losses": losses_of(folder),
        "plain": run(whole).metrics,
        "plain losses": losses_of(whole.run),
    }


@pytest.mark.ranks
def test_ranks_that_are_told_to_end_save_the_step_that_is_trained_and_go_on_from_it(
    problem: dict[str, Any], tmp_path: Path
):
    for facts in run_ranks(stop_and_go_on, 2, problem, str(tmp_path / "r")):
        assert facts["saved"][-1] == 9
        assert facts["metrics"] == facts["plain"]
        assert facts["losses"] == facts["plain losses"]


def test_what_cannot_be_pipelined_is_refused_by_name(problem: dict[str, Any], tmp_path: Path):
    train = {"pipeline": "sparse_dist"}
    with pytest.raises(ValidationError, match=r"train.pipeline.*\[finetune\].*set train.pipeline = 'plain'"):
        rank_config(problem, str(tmp_path / "r"), train=train, finetune={"warmup_epochs": 0})
    with pytest.raises(ValidationError, match=r"branch on shapes.*train.pipeline = 'plain'"):
        retrieve_config(problem, str(tmp_path / "r"), train=train)
    with pytest.raises(ValidationError, match="'plain' or 'sparse_dist'"):
        rank_config(problem, str(tmp_path / "r"), train={"pipeline": "prefetch"})
