"""A study that asks its own finished runs again: metrics.json of both, seed by seed, is the oracle."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets import write_small_dataset
from tests.jobs.ranking import rank_config
from tests.jobs.retrieving import retrieve_config
from tests.ranks import fork_server
from trec_semid.core.config import dump_toml, load_config
from trec_semid.evaluation.target_positions import read_target_positions
from trec_semid.jobs.study import StudyConfig, run

SEEDS = (0, 1)
STUDY = """
out = "{out}"
seeds = [0, 1]
replicates = 200
baseline = "near"
metrics = [
    "test/ndcg@10", "test/recall@5", "test/recall@3", "test/ndcg@10/popularity_unseen",
    "test/auc", "test-frozen/auc",
]

[[step]]
name = "near"
verb = "retrieve"
seeds = true
files = ["{retrieve}"]

[[step]]
name = "ranker"
verb = "rank"
seeds = true
files = ["{rank}"]

[[step]]
name = "{{asked}}-penalty_{{penalty}}"
verb = "evaluate"
seeds = true
grid = {{ asked = ["near"], penalty = [0.5, 50.0] }}
set = {{ runs = ["{{{{asked}}}}"], retrieval = {{ unseen_penalty = "{{penalty}}", cutoffs = [3, 10] }} }}

[[step]]
name = "online"
verb = "evaluate"
seeds = true
set = {{ runs = ["{{ranker}}"], ranking = {{ protocols = ["online"] }} }}

[[step]]
name = "report"
verb = "report"
set = {{ runs = {reported} }}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a finished study's folder, its config and `study.json`."""
    folder = tmp_path_factory.mktemp("study")
    problem = {"dataset": write_small_dataset(str(folder / "data"), num_users=80)}
    out = folder / "out"
    files = {
        "retrieve": retrieve_config(problem, "x", train={"max_epochs": 2}),
        "rank": rank_config(problem, "x", representation="item", train={"max_epochs": 1}),
    }
    for name, config in files.items():
        (folder / f"{name}.toml").write_text(dump_toml(config))
    reported = [f"{out}/{step}/seed-{seed}" for step in ("near", "near-penalty_50.0") for seed in SEEDS]
    text = STUDY.format(
        out=out, reported=json.dumps(reported), **{name: folder / f"{name}.toml" for name in files}
    )
    (folder / "study.toml").write_text(text)
    config = load_config(StudyConfig, [str(folder / "study.toml")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method: fork_server())
        return out, config, run(config)


def said(out: Path, step: str, key: str) -> list[float]:
    """Return a metric of a step by seed, as its runs wrote it."""
    files = [out / step / f"seed-{seed}" / "metrics.json" for seed in SEEDS]
    return [json.loads(file.read_text())["metrics"][key] for file in files]


def test_every_evaluation_is_of_its_own_seeds_run(study: Any):
    out, _, _ = study
    for seed in SEEDS:
        folder = out / "near-penalty_50.0" / f"seed-{seed}"
        assert json.loads((folder / "metrics.json").read_text())["seed"] == seed
        (asked,) = json.loads((folder / "evaluated.json").read_text())["runs"]
        assert asked["run"] == str(out / "near" / f"seed-{seed}")


def test_the_table_has_what_an_evaluation_wrote(study: Any):
    out, _, result = study
    row = result["table"]["near-penalty_50.0"]
    assert row["test/ndcg@10"]["values"] == said(out, "near-penalty_50.0", "test/ndcg@10")
    assert row["test/ndcg@10"]["values"] != said(out, "near", "test/ndcg@10")
    assert "test/recall@5" not in row  # of lists that it was not asked for
    assert result["table"]["online"]["test/auc"]["values"] == said(out, "ranker", "test/auc")
    assert "near-penalty_0.5" in result["markdown"]


def test_an_evaluation_is_compared_with_the_run_over_users_and_seeds(study: Any):
    out, _, result = study
    compared = result["comparisons"]["near-penalty_50.0"]
    # The run's positions tell of the top 3 as well, though its own metrics do not.
    metrics = {"test/ndcg@10", "test/recall@3", "test/ndcg@10/popularity_unseen"}
    assert set(compared) == metrics - few_users(out)
    of_lists = compared["test/ndcg@10"]
    pairs = [said(out, step, "test/ndcg@10") for step in ("near-penalty_50.0", "near")]
    assert of_lists["paired_over"] == "seeds and users"
    assert of_lists["seeds"] == 2
    assert of_lists["difference"] == pytest.approx(np.subtract(*pairs).mean(), abs=1e-9)
    assert "online" not in result["comparisons"]  # a ranker is not compared with a retriever


def few_users(out: Path) -> set[str]:
    """Name the slice that too few users have targets in to compare anything."""
    targets = read_target_positions(str(out / "near" / "seed-0"), "test")
    unseen = targets.item_row >= 38  # the last two items of the small dataset have no training event
    is_few = len(np.unique(targets.user_row[unseen])) < 10
    return {"test/ndcg@10/popularity_unseen"} if is_few else set()


def test_the_report_sets_evaluations_beside_their_runs(study: Any):
    out, _, result = study
    report = json.loads((out / "report" / "report.json").read_text())
    (other,) = [arm for arm in report["arms"] if not arm["is_baseline"]]
    assert [arm["seeds"] for arm in report["arms"]] == [[0, 1], [0, 1]]
    assert "items without a training event 50 lower" in other["lists"]
    (told,) = [
        each for each in report["comparisons"] if (each["metric"], each["stratum"]) == ("ndcg@10", None)
    ]
    assert told["difference"] == pytest.approx(
        result["comparisons"]["near-penalty_50.0"]["test/ndcg@10"]["difference"], abs=1e-9
    )


def test_a_finished_study_is_left_as_it_is(study: Any, monkeypatch: pytest.MonkeyPatch):
    _, config, _ = study
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork_server())
    assert all(row["was_kept"] for row in run(config)["runs"])
