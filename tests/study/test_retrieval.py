from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets import write_small_dataset
from trec_semid.core.config import Config, load_config
from trec_semid.core.paths import write_bytes
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.predictions import PredictionWriter
from trec_semid.evaluation.resampling import Draws, RunReader
from trec_semid.evaluation.retrieval import retrieval_metrics
from trec_semid.evaluation.strata import training_strata
from trec_semid.evaluation.target_positions import TARGET_SCHEMA, read_target_positions
from trec_semid.jobs.evaluate import EvaluateConfig
from trec_semid.jobs.prepare import PrepareConfig
from trec_semid.jobs.tokenize import TokenizeConfig
from trec_semid.study.compare import compare
from trec_semid.study.grid import StudyConfig, plan_runs
from trec_semid.training.ranking.setup import RankConfig
from trec_semid.training.retrieval.setup import RetrieveConfig

REPOSITORY = Path(__file__).parents[2]
READS: dict[str, type[Config]] = {
    "prepare": PrepareConfig,
    "tokenize": TokenizeConfig,
    "rank": RankConfig,
    "retrieve": RetrieveConfig,
    "evaluate": EvaluateConfig,
}
METRICS = ["test/ndcg@10", "test/recall@5/popularity_tail", "test/gauc", "valid/ndcg@10"]


def write_run(folder: str, dataset: str, shift: int, *, num_users: int = 50) -> str:
    """Write ranks of one target for each user, all better or worse by a shift."""
    rng = np.random.default_rng(0)
    ranks = np.maximum(rng.integers(1, 30, 50) + shift + rng.integers(0, 2, 50), 1)[:num_users]
    write_bytes(f"{folder}/config.toml", f'dataset = "{dataset}"\n'.encode())
    with PredictionWriter(
        folder, "test", rank=0, world_size=1, num_rows=num_users, schema=TARGET_SCHEMA
    ) as writer:
        users = np.arange(num_users)
        writer.write(row=users, user_row=users, item_row=users % 40, rank=ranks)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("study"))
    dataset = write_small_dataset(f"{folder}/data")
    return dataset, [
        write_run(f"{folder}/{name}", dataset, shift) for name, shift in (("near", 0), ("far", 9))
    ]


def test_draws_have_the_values_of_the_runs_own_metrics(runs):
    dataset, (near, _) = runs
    found = RunReader().draw_retriever(near, METRICS, {"valid": Draws(20), "test": Draws(20)})
    metrics, _ = retrieval_metrics(read_target_positions(near, "test"), training_strata(Dataset(dataset)))
    assert {name: drawn.value for name, drawn in found.items()} == pytest.approx(
        {f"test/{name}": metrics[name] for name in ("ndcg@10", "recall@5/popularity_tail")}
    )
    assert len(found["test/ndcg@10"].draws) == 20


def described(name: str, folder: str) -> dict[str, Any]:
    known = {"step": name, "label": name, "seed": 0, "verb": "retrieve"}
    return {**known, "folders": [folder], "metrics": {"test/ndcg@10": 0.0}}


def test_retrievers_are_compared_pair_by_pair_over_users(runs):
    rows = [described(name, folder) for name, folder in zip(("near", "far"), runs[1], strict=True)]
    found = compare(rows, ["test/ndcg@10"], "far", 500)["near"]["test/ndcg@10"]
    assert found.paired_over == "users"
    assert found.verdict == "higher"
    assert 0 < found.low < found.difference < found.high


STUDIES = sorted(
    str(path.relative_to(REPOSITORY))
    for path in [
        *REPOSITORY.glob("configs/studies/**/*.toml"),
        *REPOSITORY.glob("configs/quickstart/*.toml"),
    ]
    if "[[step]]" in path.read_text()
)


@pytest.mark.parametrize("study", STUDIES)
def test_every_run_of_the_studies_has_a_valid_config(study: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    planned = plan_runs(load_config(StudyConfig, [study]))
    asked = [run for run in planned if run.verb in READS]
    assert asked
    for run in asked:
        load_config(READS[run.verb], list(run.files), list(run.sets))
    assert len({run.folder for run in planned}) == len(planned)


def test_all_rows_of_the_leaderboard_have_lists_of_the_lengths_in_its_table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    study = load_config(StudyConfig, ["configs/studies/leaderboard.toml"])
    shown = {int(name.split("@")[1].split("/")[0]) for name in study.metrics if "@" in name}
    runs = [run for run in plan_runs(study) if run.verb == "retrieve"]
    configs = [load_config(RetrieveConfig, list(run.files), list(run.sets)) for run in runs]
    assert {config.evaluation.cutoffs for config in configs} == {tuple(sorted(shown))}


def test_the_report_of_a_retrieval_study_reads_and_waits_for_its_retrievers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    planned = plan_runs(load_config(StudyConfig, ["configs/quickstart/retrieval.toml"]))
    (report,) = [run for run in planned if run.verb == "report"]
    assert set(report.needs) == {run.label for run in planned if run.verb in ("tokenize", "retrieve")}
    (runs,) = [value for value in report.sets if value.startswith("runs=")]
    assert "runs/quickstart_retrieval/heterrec-mmq/seed-0" in runs


def test_a_step_over_other_users_than_the_baseline_is_left_uncompared(runs, tmp_path):
    dataset, (near, far) = runs
    fewer = write_run(str(tmp_path / "fewer"), dataset, 0, num_users=30)
    rows = [described(name, folder) for name, folder in (("near", near), ("far", far), ("fewer", fewer))]
    assert set(compare(rows, ["test/ndcg@10"], "near", 100)) == {"far"}
