"""A ranker whose dense part is compiled trains as before, but for rounding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch._dynamo.utils import counters

from tests.jobs.ranking import losses_of, rank_config, run_until, write_problem
from trec_semid.core.errors import StackError
from trec_semid.evaluation.predictions import read_predictions
from trec_semid.jobs.rank import run

EPOCH = {"max_epochs": 1}
COMPILED = {**EPOCH, "compile": True}
ONE_LAYER = {"layer_dims": [8], "gate_dim": 8}
"""Of the model: a kernel takes seconds of g++, and every layer brings some."""


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_problem(str(tmp_path_factory.mktemp("compiled")))


@pytest.fixture(scope="module")
def compiled(problem: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a compiled run."""
    folder = str(tmp_path_factory.mktemp("runs") / "r")
    before = counters["stats"]["unique_graphs"]
    run(rank_config(problem, folder, train=COMPILED, model=ONE_LAYER))
    # One graph for the batches of an epoch, the last and smaller one among them, and none for evaluation.
    assert counters["stats"]["unique_graphs"] == before + 1
    return folder


def scores_of(folder: str) -> np.ndarray:
    return read_predictions(folder, "valid").score


@pytest.mark.slow
def test_losses_and_scores_are_those_of_the_plain_run_but_for_rounding(
    problem: dict[str, Any], compiled: str, tmp_path: Path
):
    plain = str(tmp_path / "r")
    run(rank_config(problem, plain, train=EPOCH, model=ONE_LAYER))
    assert losses_of(compiled) == pytest.approx(losses_of(plain), rel=1e-5)
    np.testing.assert_allclose(scores_of(compiled), scores_of(plain), atol=1e-4)


@pytest.mark.slow
def test_a_pipeline_trains_a_compiled_part_as_the_plain_loop_does(
    problem: dict[str, Any], compiled: str, tmp_path: Path
):
    piped = str(tmp_path / "r")
    run(rank_config(problem, piped, train={**COMPILED, "pipeline": "sparse_dist"}, model=ONE_LAYER))
    assert losses_of(piped) == losses_of(compiled)


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(
    problem: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    changes: dict[str, Any] = {
        "train": COMPILED,
        "model": {**ONE_LAYER, "dropout": 0.3},
        "checkpoints": {"every_steps": 2},
    }
    whole = run(rank_config(problem, str(tmp_path / "whole"), **changes)).metrics
    config = rank_config(problem, str(tmp_path / "stopped"), **changes)
    run_until(monkeypatch, config, 5)
    assert run(config).metrics == whole


def test_without_a_compiler_it_is_refused_before_training(
    problem: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(StackError, match=r"train.compile: no C\+\+ compiler .*looked for g\+\+"):
        run(rank_config(problem, str(tmp_path / "r"), train=COMPILED))
    assert not (tmp_path / "r").exists()
