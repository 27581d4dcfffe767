"""Finished runs evaluated again, with other settings or at another step."""

from pathlib import Path

import pytest

from tests.datasets import write_small_dataset
from tests.jobs.retrieving import retrieve_config
from trec_semid.checkpoints.folder import complete_steps
from trec_semid.core.errors import ConfigError
from trec_semid.jobs.retrieve import run
from trec_semid.runtime.ranks import process_group
from trec_semid.runtime.runs import RunFolder
from trec_semid.training.retrieval.finished import evaluator_of_run
from trec_semid.training.retrieval.setup import EvaluationConfig


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    data = {"dataset": write_small_dataset(str(root / "data"))}
    runs = {}
    for kind in ("sasrec", "popularity"):
        model = (
            {"model": {"kind": "popularity"}} if kind == "popularity" else {"checkpoints": {"keep_last": 5}}
        )
        config = retrieve_config(data, str(root / kind), **model)
        runs[kind] = config, run(config).metrics
    return runs


def metrics_of(
    config, evaluation: EvaluationConfig, plans: Path, step: int | None = None
) -> dict[str, float]:
    with process_group() as ranks:
        plans_folder = RunFolder(str(plans), "retrieve")
        return evaluator_of_run(config.run, evaluation, plans_folder, ranks, step=step).metrics()


@pytest.mark.parametrize("kind", ["sasrec", "popularity"])
def test_by_its_own_settings_a_run_comes_to_what_it_came_to(finished, tmp_path, kind):
    config, metrics = finished[kind]
    for name, value in metrics_of(config, config.evaluation, tmp_path).items():
        assert value == pytest.approx(metrics[f"valid/{name}"], abs=1e-6)


def test_shorter_lists_are_the_beginnings_of_longer_ones(finished, tmp_path):
    config, metrics = finished["sasrec"]
    found = metrics_of(config, EvaluationConfig(cutoffs=(10, 20)), tmp_path)
    assert found["recall@10"] == pytest.approx(metrics["valid/recall@10"], abs=1e-6)
    assert found["recall@20"] >= found["recall@10"]


def test_another_step_has_other_weights(finished, tmp_path):
    config, _ = finished["sasrec"]
    steps = complete_steps(f"{config.run}/checkpoints")
    assert len(steps) > 1
    found = [metrics_of(config, config.evaluation, tmp_path / str(step), step) for step in steps]
    assert any(one != found[0] for one in found[1:])


def test_settings_that_make_no_sense_for_its_method_are_refused(finished, tmp_path):
    config, _ = finished["sasrec"]
    with pytest.raises(ConfigError, match="a beam goes over codes"):
        metrics_of(config, EvaluationConfig(cutoffs=(10,), beam_width=20), tmp_path)
