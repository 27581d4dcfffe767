import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from sklearn.metrics import log_loss, roc_auc_score

from tests.datasets import describe_again
from tests.jobs.ranking import (
    about,
    losses_of,
    mark_finished,
    rank_config,
    run_until,
    train_with_plan,
    write_problem,
)
from tests.ranks import run_ranks
from trec_semid.checkpoints.folder import best_step, complete_steps
from trec_semid.core.config import load_config
from trec_semid.core.errors import CheckpointError, ConfigError, TrainingError
from trec_semid.core.paths import find_files
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.predictions import read_predictions
from trec_semid.evaluation.ranking import split_metrics
from trec_semid.evaluation.strata import training_strata
from trec_semid.jobs.rank import RankConfig, run
from trec_semid.runtime.logs import read_events
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds

PLANS = ("row_wise", "table_wise")


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory):
    return write_problem(str(tmp_path_factory.mktemp("ranking")))


@pytest.fixture(scope="module")
def finished(problem: dict[str, Any], tmp_path_factory: pytest.TempPathFactory):
    folder = str(tmp_path_factory.mktemp("runs") / "both")
    return folder, run(rank_config(problem, folder)).metrics


def test_the_run_folder_holds_what_other_programs_read(finished: Any):
    names = {path.name for path in Path(finished[0]).iterdir()}
    wanted = {"config.toml", "run.json", "log.jsonl", "plan.json", "plan.txt", "checkpoints", "predictions"}
    assert wanted | {"metrics.json", "semantic_ids.parquet"} <= names
    assert any(name.startswith("events.") for name in names)


def test_metrics_equal_those_of_the_written_predictions(finished: Any, problem: dict[str, Any]):
    folder, metrics = finished
    for split in ("valid", "test"):
        predictions = read_predictions(folder, split)
        expected, counts = split_metrics(split, predictions, training_strata(Dataset(problem["dataset"])))
        assert expected == pytest.approx(
            {k: v for k, v in metrics.items() if k.split("/")[0].startswith(split)}
        )
        assert metrics[f"{split}/auc"] == pytest.approx(roc_auc_score(predictions.label, predictions.score))
        assert metrics[f"{split}-frozen/log_loss"] == pytest.approx(
            log_loss(predictions.label, predictions.score_frozen), rel=1e-5
        )
        stored = json.loads(Path(folder, "metrics.json").read_text())["counts"]
        assert counts.items() <= stored.items()


def test_predictions_stand_in_the_order_of_the_splits_events(finished: Any, problem: dict[str, Any]):
    events = Dataset(problem["dataset"]).events(split="test").to_pandas()
    table = pq.read_table(f"{finished[0]}/predictions/test-rank-0.parquet").to_pandas()
    assert table.row.tolist() == list(range(len(events)))
    assert table.user_row.tolist() == events.user_row.tolist()
    assert table.item_row.tolist() == events.item_row.tolist()
    assert table.label.tolist() == events.label.tolist()
    assert (table.score != table.score_frozen).any()


def test_the_signal_of_the_data_is_learned_through_semantic_ids(problem: dict[str, Any], tmp_path: Path):
    # Codes tell the clusters that decide the labels; a perfect ranker has an AUC near 0.87.
    config = rank_config(
        problem,
        str(tmp_path / "r"),
        representation="semantic",
        tables={"init_std": 0.3},
        optimizers={"dense": {"learning_rate": 0.01}, "tables": {"learning_rate": 0.3}},
        train={"batch_size": 100, "max_epochs": 12, "evaluate_every_steps": 1000, "log_every_steps": 20},
    )
    metrics = run(config).metrics
    assert metrics["test/auc"] > 0.72
    assert metrics["test/gauc"] > 0.72


def test_the_log_tells_every_step_evaluation_and_the_best(finished: Any):
    events = read_events(f"{finished[0]}/log.jsonl")
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start"
    assert kinds[-1] == "finish"
    evaluations = [event for event in events if event["event"] == "evaluate"]
    assert [event["step"] for event in evaluations] == [7, 14, 21]
    assert [event["epoch"] for event in evaluations] == [1, 2, 3]
    assert {"valid/auc", "valid/gauc", "valid/log_loss"} <= set(evaluations[0])
    assert len(losses_of(finished[0])) == 21


def test_the_weights_of_the_best_evaluation_are_the_ones_that_count(finished: Any):
    folder, metrics = finished
    evaluations = [event for event in read_events(f"{folder}/log.jsonl") if event["event"] == "evaluate"]
    best = max(evaluations, key=lambda event: event["valid/auc"])
    assert metrics["valid/auc"] == pytest.approx(best["valid/auc"], abs=1e-12)
    assert best_step(f"{folder}/checkpoints") == best["step"]


def test_an_earlier_best_step_is_loaded_back(problem: dict[str, Any], tmp_path: Path):
    config = rank_config(
        problem,
        str(tmp_path / "r"),
        optimizers={"dense": {"learning_rate": 0.2}, "tables": {"learning_rate": 1.0}},
        train={"max_epochs": 6, "patience": 2},
    )
    metrics = run(config).metrics
    events = read_events(f"{config.run}/log.jsonl")
    aucs = [event["valid/auc"] for event in events if event["event"] == "evaluate"]
    assert aucs.index(max(aucs)) < len(aucs) - 1, "the problem no longer overfits"
    assert metrics["valid/auc"] == pytest.approx(max(aucs), abs=1e-12)
    assert len(aucs) == min(aucs.index(max(aucs)) + 3, 6)


def test_a_finished_run_is_left_as_it_is(finished: Any, problem: dict[str, Any]):
    folder, metrics = finished
    before = Path(folder, "metrics.json").stat().st_mtime_ns
    assert run(rank_config(problem, folder)).metrics == metrics
    assert Path(folder, "metrics.json").stat().st_mtime_ns == before


def test_another_config_does_not_overwrite_a_run(finished: Any, problem: dict[str, Any]):
    with pytest.raises(ConfigError, match="holds a run of another config: seed: 0 there, 5 now"):
        run(rank_config(problem, finished[0], seed=5))


@pytest.mark.parametrize(
    ("stop", "changes"),
    [
        (5, {"checkpoints": {"every_steps": 3}}),
        (14, {}),
        (16, {"train": {"evaluate_every_steps": 5}, "checkpoints": {"in_background": True}}),
        (9, {"sharding": {"tables": {"t_*": {"sharding_types": ["data_parallel"]}}}}),
    ],
)
def test_an_interrupted_run_ends_like_one_that_was_not(
    problem: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
    changes: dict[str, Any],
):
    changes = {"model": {"dropout": 0.3}, "optimizers": {"dense": {"schedule": "cosine"}}, **changes}
    whole = rank_config(problem, str(tmp_path / "whole"), **changes)
    expected = run(whole).metrics
    config = rank_config(problem, str(tmp_path / "stopped"), **changes)
    run_until(monkeypatch, config, stop)
    assert not Path(config.run, "metrics.json").exists()
    assert run(config).metrics == expected
    resumed = [e["step"] for e in read_events(f"{config.run}/log.jsonl") if e["event"] == "resume"]
    assert len(resumed) == 1
    assert losses_of(config.run)[-1] == losses_of(whole.run)[-1]


def test_a_run_does_not_go_on_with_other_data(
    problem: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(problem["dataset"], tmp_path / "data")
    config = rank_config({**problem, "dataset": str(tmp_path / "data")}, str(tmp_path / "run"))
    run_until(monkeypatch, config, 8)
    describe_again(str(tmp_path / "data"), checksum="other")
    with pytest.raises(CheckpointError, match="trained on other data"):
        run(config)


def other_codes(problem: dict[str, Any], folder: Path) -> dict:
    """Return the problem with a copy of its semantic IDs in a tokenize run's place."""
    folder.mkdir()
    shutil.copy(problem["semantic_ids"], folder / "semantic_ids.parquet")
    mark_finished(str(folder))
    return {**problem, "semantic_ids": str(folder)}


def retokenize(folder: Path, dataset: str) -> None:
    ids = SemanticIds.load(f"{folder}/semantic_ids.parquet", Dataset(dataset).item_ids)
    SemanticIds(ids.item_ids, ids.codes[::-1].copy(), ids.sizes).save(f"{folder}/semantic_ids.parquet")
    mark_finished(str(folder))


def test_a_run_does_not_go_on_with_other_codes_and_keeps_those_it_was_trained_with(
    problem: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = rank_config(other_codes(problem, tmp_path / "tokenizer"), str(tmp_path / "run"))
    run_until(monkeypatch, config, 8)
    kept = (tmp_path / "run/semantic_ids.parquet").read_bytes()
    made = (tmp_path / "run/run.json").read_bytes()
    retokenize(tmp_path / "tokenizer", problem["dataset"])
    with pytest.raises(CheckpointError, match="trained on other semantic IDs"):
        run(config)
    assert (tmp_path / "run/semantic_ids.parquet").read_bytes() == kept
    assert (tmp_path / "run/run.json").read_bytes() == made


def test_a_finished_run_of_other_codes_is_not_called_done(problem: dict[str, Any], tmp_path: Path):
    config = rank_config(
        other_codes(problem, tmp_path / "tokenizer"), str(tmp_path / "run"), train={"max_epochs": 1}
    )
    metrics = run(config).metrics
    assert run(config).metrics == metrics
    retokenize(tmp_path / "tokenizer", problem["dataset"])
    with pytest.raises(CheckpointError, match="trained on other semantic IDs"):
        run(config)
    assert (tmp_path / "run/metrics.json").exists()


def test_checkpoints_hold_the_semantic_ids_they_were_trained_with(finished: Any):
    (step, *_) = complete_steps(f"{finished[0]}/checkpoints")
    inside = Path(finished[0], "checkpoints", f"step-{step}", "semantic_ids.parquet").read_bytes()
    assert inside == Path(finished[0], "semantic_ids.parquet").read_bytes()


@pytest.mark.parametrize("representation", ["item", "semantic"])
def test_items_can_be_their_ids_or_their_codes_alone(
    problem: dict[str, Any], tmp_path: Path, representation: str
):
    changes = {"representation": representation, "train": {"max_epochs": 1}}
    run(rank_config(problem, str(tmp_path / "r"), **changes))
    assert (tmp_path / "r/semantic_ids.parquet").exists() == (representation == "semantic")
    tables = {table["name"] for table in json.loads((tmp_path / "r/plan.json").read_text())["tables"]}
    read = {"t_item_id"} if representation == "item" else {"t_code_0", "t_code_1"}
    assert tables & {"t_item_id", "t_code_0", "t_code_1"} == read
    # Other codes are another problem exactly for who reads them.
    other = other_codes(problem, tmp_path / "tokenizer")
    retokenize(tmp_path / "tokenizer", problem["dataset"])
    run(rank_config(other, str(tmp_path / "other"), **changes))
    is_same = losses_of(str(tmp_path / "other")) == losses_of(str(tmp_path / "r"))
    assert is_same == (representation == "item")


def test_runs_can_live_in_any_file_system(problem: dict[str, Any], finished: Any):
    folder, metrics = finished
    assert run(rank_config(problem, "memory://rank/r")).metrics == metrics
    there = {name.partition("/")[0] for name in find_files("memory://rank/r")}
    assert {name.split(".")[0] for name in there} == {
        path.name.split(".")[0] for path in Path(folder).iterdir()
    }
    here, away = (read_predictions(place, "test") for place in (folder, "memory://rank/r"))
    assert here.score.tolist() == away.score.tolist()
    assert complete_steps("memory://rank/r/checkpoints") == complete_steps(f"{folder}/checkpoints")


@pytest.mark.parametrize("names", [["ppnet"], ["ppnet_cluster"], ["ppnet", "ppnet_gate_output"]])
def test_the_ready_configs_are_valid(names: list[str]):
    folder = Path(__file__).resolve().parents[2] / "configs" / "rankers"
    config = load_config(RankConfig, [str(folder / f"{name}.toml") for name in names])
    assert config.model.model_dump()["gate"] == (
        "gate_output" if "ppnet_gate_output" in names else "gate_input"
    )


def test_codes_need_a_tokenizer(problem: dict[str, Any]):
    with pytest.raises(ConfigError, match="representation 'semantic' needs semantic_ids"):
        load_config(RankConfig, [], ["dataset=d", "run=r", "representation=semantic"])


def test_a_loss_that_is_not_finite_stops_the_run_with_a_remedy(problem: dict[str, Any], tmp_path: Path):
    config = rank_config(problem, str(tmp_path / "r"), optimizers={"tables": {"learning_rate": 1e38}})
    with pytest.raises(TrainingError, match=r"step \d+: the loss is (nan|inf).*learning rates"):
        run(config)
    assert not (tmp_path / "r/metrics.json").exists()


def on_ranks(problem: dict[str, Any], folder: str):
    return {plan: train_with_plan(problem, f"{folder}/{plan}", plan) for plan in PLANS}


@pytest.fixture(scope="module")
def on_one_two_and_four(problem: dict[str, Any], tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("ranks")
    alone = train_with_plan(problem, str(folder / "alone"), "table_wise")
    return alone, {n: run_ranks(on_ranks, n, problem, str(folder / f"on-{n}")) for n in (2, 4)}, folder


@pytest.mark.ranks
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_several_ranks_train_like_one(on_one_two_and_four: Any, world_size: int, plan: str):
    alone, several, _ = on_one_two_and_four
    for result in several[world_size]:
        assert result[plan]["losses"] == pytest.approx(alone["losses"], rel=2e-5)
        assert result[plan]["metrics"] == about(alone["metrics"])


@pytest.mark.ranks
def test_predictions_of_all_ranks_together_are_those_of_one_and_give_its_metrics(
    on_one_two_and_four: Any, problem: dict[str, Any]
):
    _, several, folder = on_one_two_and_four
    strata = training_strata(Dataset(problem["dataset"]))
    expected = read_predictions(str(folder / "alone"), "test")
    for world_size in (2, 4):
        found = read_predictions(str(folder / f"on-{world_size}" / "row_wise"), "test")
        assert found.user_row.tolist() == expected.user_row.tolist()
        assert found.score == pytest.approx(expected.score, rel=1e-3)
        # Exact, where `about` is not: metrics that ranks count together are those of what they wrote.
        metrics = several[world_size][0]["row_wise"]["metrics"]
        measured, _ = split_metrics("test", found, strata)
        assert measured == pytest.approx({k: v for k, v in metrics.items() if k.startswith("test")}, rel=1e-6)
        assert metrics["test/auc"] == pytest.approx(roc_auc_score(found.label, found.score), rel=1e-6)


def test_item_ids_beside_semantic_ids_that_nothing_reads_are_refused_with_how_to_take_them_back(
    problem: dict[str, Any],
):
    values = {**problem, "run": "nowhere", "representation": "item"}
    with pytest.raises(
        ValidationError, match=r"reads no semantic_ids \(got '.*codes\.parquet'\).*semantic_ids = ''"
    ):
        RankConfig.model_validate(values)
    assert RankConfig.model_validate({**values, "semantic_ids": ""}).semantic_ids is None
    values |= {"representation": "semantic", "features": {"id_min_events": 5}}
    with pytest.raises(
        ValidationError, match=r"id_min_events \(5\): representation 'semantic' reads no item"
    ):
        RankConfig.model_validate(values)
