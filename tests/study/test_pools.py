from pathlib import Path

import numpy as np
import pytest

from tests.datasets import write_small_dataset
from tests.metrics.brute import brute_auc, brute_gauc
from tests.report.fake_runs import write_rank_run
from trec_semid.core.errors import ConfigError
from trec_semid.evaluation.predictions import read_predictions
from trec_semid.runtime.runs import RunFolder
from trec_semid.study.compare import compare
from trec_semid.study.grid import StudyConfig
from trec_semid.study.pools import pool_runs

METRICS = [
    "test/auc",
    "test/gauc",
    "test-frozen/gauc",
    "test/gauc/popularity_head",
    "valid/gauc",
    "all/entropy",
]
POOLS = {f"{arm}-{fold}": arm for arm in ("item", "both") for fold in (0, 1)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Two arms on two folds that list the same users; events differ."""
    folder = tmp_path_factory.mktemp("runs")
    sizes = {0: 30, 1: 45}
    data = [
        write_small_dataset(str(folder / f"data-{fold}"), num_users=20, num_items=sizes[fold], seed=fold)
        for fold in sizes
    ]
    made = []
    for seed in (0, 1):
        for step in POOLS:
            arm, fold = step.split("-")
            place = str(folder / step / f"seed-{seed}")
            write_rank_run(place, data[int(fold)], seed=seed, skill={"item": 0.1, "both": 2.0}[arm])
            metrics = RunFolder(place, "rank").read_json("metrics.json")["metrics"] | {
                "all/entropy": float(fold),
                "valid/gauc": float(fold) / 2,
            }
            made.append(
                {
                    "step": step,
                    "label": f"{step}-seed-{seed}",
                    "seed": seed,
                    "verb": "rank",
                    "folders": [place],
                    "metrics": metrics,
                    "error": None,
                }
            )
    return made


def test_a_pool_is_measured_over_the_rows_of_all_its_runs(runs: list[dict]):
    pooled = {run["label"]: run for run in pool_runs(runs, POOLS, METRICS)}
    assert list(pooled) == ["item-seed-0", "both-seed-0", "item-seed-1", "both-seed-1"]
    for run in pooled.values():
        parts = [read_predictions(folder, "test") for folder in run["folders"]]
        scores, labels, users, frozen = (
            np.concatenate([getattr(part, name) for part in parts]).tolist()
            for name in ("score", "label", "user_row", "score_frozen")
        )
        assert len(parts) == 2
        assert run["metrics"]["test/auc"] == pytest.approx(brute_auc(scores, labels), abs=1e-12)
        assert run["metrics"]["test/gauc"] == pytest.approx(brute_gauc(scores, labels, users)[0], abs=1e-12)
        gauc = brute_gauc(frozen, labels, users)[0]
        assert run["metrics"]["test-frozen/gauc"] == pytest.approx(gauc, abs=1e-12)
        assert run["metrics"]["all/entropy"] == 0.5
        # Folds share validation rows: their metrics are averaged.
        assert run["metrics"]["valid/gauc"] == 0.25
    found = compare(list(pooled.values()), METRICS, "item", 200)["both"]["test/gauc"]
    assert found.paired_over == "seeds and users"
    assert found.verdict == "higher"
    assert compare(list(pooled.values()), METRICS, "item", 200)["both"]["valid/gauc"].paired_over == "seeds"


def test_a_pool_with_a_failed_run_is_no_result(runs: list[dict]):
    broken = [{**run, "error": "it broke"} if run["label"] == "both-1-seed-0" else run for run in runs]
    errors = {run["label"]: run["error"] for run in pool_runs(broken, POOLS, METRICS)}
    assert errors == {
        "item-seed-0": None,
        "both-seed-0": "it broke",
        "item-seed-1": None,
        "both-seed-1": None,
    }


def test_runs_over_other_users_are_not_pooled(runs: list[dict], tmp_path: Path):
    other = write_small_dataset(str(tmp_path / "data"), num_users=21)
    place = write_rank_run(str(tmp_path / "run"), other, seed=0)
    mixed = [{**run, "folders": [place]} if run["label"] == "item-1-seed-0" else run for run in runs]
    error = pool_runs(mixed, POOLS, METRICS)[0]["error"]
    assert "its users are not those of" in error


def test_steps_without_a_pool_stay_as_they_are(runs: list[dict]):
    assert pool_runs(runs, {}, METRICS) == runs


def study(**step):
    base = {"verb": "rank", "name": "a-{fold}", "grid": {"fold": [0, 1]}, "pool": "a"}
    return StudyConfig.model_validate({"out": "x", "baseline": "a", "step": [base | step]})


def test_grids_fill_in_pools():
    assert study().pools == {"a-0": "a", "a-1": "a"}
    assert study(name="{arm}-{fold}", pool="{arm}", grid={"arm": ["a"], "fold": [3]}).pools == {"a-3": "a"}


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ({"verb": "tokenize"}, "only rank steps have predictions"),
        ({"pool": "a-1"}, "pool 'a-1' is a step's name as well"),
        ({"pool": "b"}, "baseline 'a' is no step"),
    ],
)
def test_pools_that_cannot_be_are_refused(step, problem):
    with pytest.raises((ValueError, ConfigError), match=problem):
        study(**step)
