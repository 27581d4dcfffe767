import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import write_small_dataset
from tests.jobs.ranking import losses_of, run_until
from tests.jobs.retrieving import STILL, retrieve_config
from tests.jobs.test_rank_finetune import PUBLISHED, side_by_side, write_problem
from trec_semid.core.errors import CheckpointError, ConfigError
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.retrieval import retrieval_metrics
from trec_semid.evaluation.strata import training_strata
from trec_semid.evaluation.target_positions import read_target_positions
from trec_semid.jobs import tokenize
from trec_semid.jobs.retrieve import run
from trec_semid.metrics.retrieval import ReachFacts
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.training.retrieval.build import build_model, parts_of
from trec_semid.training.retrieval.inputs import read_inputs

NO_ITEM = {"id": False, "fields": [], "content": []}
CODES_ALONE = {"item": NO_ITEM, "loss": {"item_weight": 0.0}}
TUNED = {"estimator": "straight_through", "warmup_epochs": 0, "learning_rate": 0.01, "entropy_floor": 0.0}
VARIED = {"augment": {"crop_prob": 0.5, "shuffle_prob": 0.6}}
HETERREC = {"kind": "heterrec", "tokens": STILL, "items": STILL, "dropout": 0.0}


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory):
    return side_by_side(write_problem(str(tmp_path_factory.mktemp("retrieval"))))


def test_a_finished_run_is_left_and_tells_its_metrics_again(
    finished: Any, problem: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    folder, metrics = finished
    written = Path(folder, "metrics.json").stat().st_mtime_ns
    assert run(retrieve_config(problem, folder)).metrics == metrics
    assert Path(folder, "metrics.json").stat().st_mtime_ns == written
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "ndcg@10" in line]
    shown = [cell.strip() for cell in row.split("│")[2:4]]
    assert shown == [f"{metrics[f'{split}/ndcg@10']:.4f}" for split in ("valid", "test")]


@pytest.fixture(scope="module")
def finished(problem: dict[str, Any], tmp_path_factory: pytest.TempPathFactory):
    folder = str(tmp_path_factory.mktemp("runs") / "both")
    return folder, run(retrieve_config(problem, folder)).metrics


def test_metrics_equal_those_of_the_written_ranks(finished: Any, problem: dict[str, Any]):
    folder, metrics = finished
    for split in ("valid", "test"):
        found = read_target_positions(folder, split)
        strata = training_strata(Dataset(problem["dataset"]))
        expected, counts = retrieval_metrics(found, strata, cutoffs=(5, 10))
        own = {name: value for name, value in metrics.items() if name.startswith(f"{split}/")}
        own = {name: value for name, value in own.items() if "coverage" not in name}
        assert own == pytest.approx({f"{split}/{name}": value for name, value in expected.items()})
        stored = json.loads(Path(folder, "metrics.json").read_text())["counts"]
        assert stored[f"{split}/targets"] == counts["targets"] == len(found.position) > 0


def test_targets_are_the_liked_items_of_the_split_once_a_user(finished: Any, problem: dict[str, Any]):
    found = read_target_positions(finished[0], "test")
    events = Dataset(problem["dataset"]).events(split="test").to_pandas()
    liked = events[events.label > 0.5][["user_row", "item_row"]].drop_duplicates()
    pairs = set(zip(found.user_row.tolist(), found.item_row.tolist(), strict=True))
    assert pairs == set(liked.itertuples(index=False, name=None))


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory):
    """Codes tell the clusters: about ten of forty items are of a user's own, and liked six times as often."""
    folder = str(tmp_path_factory.mktemp("crowd"))
    dataset = write_small_dataset(f"{folder}/data", num_users=500)
    config = {"dataset": dataset, "run": f"{folder}/mmq", "tokenizer": PUBLISHED.model_dump()}
    tokenize.run(tokenize.TokenizeConfig.model_validate(config))
    return {"dataset": dataset, "semantic_ids": f"{folder}/mmq"}


@pytest.mark.parametrize("model", [None, HETERREC, {"kind": "rpg", "transformer": STILL, "dropout": 0.0}])
def test_what_users_like_is_learned_through_codes_alone(crowd: dict[str, Any], tmp_path: Path, model: Any):
    config = retrieve_config(
        crowd,
        str(tmp_path / "r"),
        item={"id": False, "fields": [], "content": []},
        loss={"item_weight": 0.0},
        evaluation={"masks_history": False},
        train={"batch_size": 50, "max_epochs": 8, "evaluate_every_steps": 1000},  # once, at the end
        **({"model": model} if model else {}),
    )
    assert run(config).metrics["test/recall@10"] > 0.4  # a list drawn at random has 0.25


@pytest.mark.parametrize(
    "changes",
    [{}, {"model": HETERREC}, {"loss": {"code_weight": 0.0}, "sampled": {"num_sampled": 5000}}],
    ids=["sasrec", "heterrec", "sampled"],
)
def test_products_in_bfloat16_train_about_as_those_in_float32(
    problem: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
):
    losses = []
    for precision in ("float32", "bfloat16"):
        folder = str(tmp_path / precision)
        run(retrieve_config(problem, folder, **changes, train={"precision": precision}))
        losses.append(losses_of(folder))
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize(("accumulate", "last"), [(1, 5), (2, 2), (2, 3), (2, 4)])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    problem: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int, last: int
):
    """Three batches an epoch: with two a step, an epoch's second step has one."""
    model = {"kind": "sasrec", "transformer": {**STILL, "dropout": 0.3}, "dropout": 0.3}
    changes = {"model": model, "train": {"accumulate": accumulate, "max_epochs": 3}, "sequences": VARIED}
    whole = run(retrieve_config(problem, str(tmp_path / "whole"), **changes)).metrics
    every = {"every_steps": 1 if accumulate > 1 else 2}
    config = retrieve_config(problem, str(tmp_path / "stopped"), checkpoints=every, **changes)
    run_until(monkeypatch, config, last, run)
    assert run(config).metrics == whole


@pytest.mark.parametrize(
    "changes", [{}, {"loss": {"code_weight": 0.0}, "item": NO_ITEM}], ids=["all", "codes read"]
)
def test_a_frozen_tokenizer_in_the_loop_changes_nothing(
    problem: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
):
    plain = retrieve_config(problem, str(tmp_path / "plain"), model=HETERREC, **changes)
    in_the_loop = {"finetune": {"estimator": "frozen", "warmup_epochs": 0}}
    frozen = retrieve_config(problem, str(tmp_path / "frozen"), model=HETERREC, **changes, **in_the_loop)
    found, expected = run(frozen).metrics, run(plain).metrics
    assert expected == pytest.approx({key: found[key] for key in expected}, abs=1e-5)
    assert losses_of(plain.run) == pytest.approx(losses_of(frozen.run), rel=1e-5)


@pytest.mark.parametrize("estimator", ["straight_through", "gumbel"])
@pytest.mark.parametrize(("item_weight", "code_weight"), [(0, 1), (1, 1), (1, 0)])
def test_a_tuned_tokenizer_moves_codes_and_is_kept_with_its_map(
    problem: dict[str, Any], tmp_path: Path, estimator: str, item_weight: float, code_weight: float
):
    config = retrieve_config(
        problem,
        str(tmp_path / "tuned"),
        model=HETERREC,
        loss={"item_weight": item_weight, "code_weight": code_weight},
        finetune={"estimator": estimator, "warmup_epochs": 1, "learning_rate": 0.02, "entropy_floor": 0.0},
    )
    metrics = run(config).metrics
    before = SemanticIds.load(f"{problem['semantic_ids']}/semantic_ids.parquet").codes
    after = SemanticIds.load(f"{config.run}/semantic_ids.parquet").codes
    assert metrics["all/churn"] == pytest.approx((before != after).any(1).mean())
    assert metrics["all/churn"] > 0
    assert np.isfinite(metrics["all/reconstruction"])


def test_items_of_nothing_and_unknown_content_are_refused(problem: dict[str, Any], tmp_path: Path):
    with pytest.raises(ValueError, match=r"item\.id_min_events: items are nothing but their IDs"):
        retrieve_config(
            problem,
            "run",
            semantic_ids=None,
            loss={},
            item={"id_min_events": 3, "fields": [], "content": []},
        )
    with pytest.raises(ValueError, match="made of nothing"):
        retrieve_config(
            {**problem, "semantic_ids": None}, "r", item={"id": False, "fields": [], "content": []}
        )
    config = retrieve_config(problem, str(tmp_path / "r"), item={"content": ["sound"]})
    with pytest.raises(ConfigError, match=r"no content 'sound'"):
        run(config)
    assert not Path(config.run).exists()


def test_maps_of_content_start_as_wide_as_rows_of_tables(problem: dict[str, Any], tmp_path: Path):
    config = retrieve_config(problem, str(tmp_path / "run"), tables={"init_std": 0.3})
    model = build_model(config, parts_of(config, read_inputs(config)), None, world_size=1)
    maps = {name: weight for name, weight in model.named_parameters() if ".content.maps." in name}
    weights = [weight for name, weight in maps.items() if name.endswith("weight")]
    assert len(weights) == 2
    for weight in weights:
        assert weight.std().item() == pytest.approx(0.3, rel=0.3)
    assert not any(bias.any() for name, bias in maps.items() if name.endswith("bias"))


def test_popularity_lists_items_by_their_training_events(problem: dict[str, Any], tmp_path: Path):
    config = retrieve_config(
        {**problem, "semantic_ids": None},
        str(tmp_path / "popular"),
        model={"kind": "popularity"},
        evaluation={"masks_history": False},
    )
    run(config)
    events = Dataset(problem["dataset"]).events(split="train").to_pandas()
    counts = np.bincount(events.item_row[events.behaviour.fillna("") != "negative"], minlength=40)
    order = np.lexsort((np.arange(40), -counts))
    place = np.empty(40, np.int64)
    place[order] = np.arange(1, 41)
    found = read_target_positions(config.run, "test")
    assert found.position.tolist() == place[found.item_row].tolist()


def test_a_beam_as_wide_as_the_catalogue_finds_what_exact_scores_find(
    problem: dict[str, Any], tmp_path: Path
):
    exact = retrieve_config(problem, str(tmp_path / "exact"), model=HETERREC, **CODES_ALONE)
    beam = retrieve_config(
        problem, str(tmp_path / "beam"), model=HETERREC, **CODES_ALONE, evaluation={"beam_width": 50}
    )
    found = run(beam).metrics
    shares = {key: found.pop(key) for key in list(found) if "beam_agreement" in key}
    assert run(exact).metrics == pytest.approx(found, abs=1e-6)
    assert shares == {"valid/beam_agreement@5": 1.0, "valid/beam_agreement@10": 1.0}


def test_a_narrow_beam_says_what_it_misses(problem: dict[str, Any], tmp_path: Path):
    narrow = retrieve_config(
        problem,
        str(tmp_path / "beam"),
        model=HETERREC,
        **CODES_ALONE,
        evaluation={"beam_width": 5, "cutoffs": [5]},
        train={"select_by": "ndcg@5"},
    )
    metrics = run(narrow).metrics
    assert 0.05 < metrics["valid/beam_agreement@5"] < 0.95
    reach = ReachFacts.model_validate_json(Path(narrow.run, "reach.json").read_text())
    assert reach.listed == {5: metrics["test/coverage@5"]}
    assert reach.hidden(5) == metrics["all/hidden@5"]
    (missed,) = [each for each in reach.absent if each.reason == "missed"]
    assert missed.search == "beam"
    assert set(missed.examples) <= set(Dataset(problem["dataset"]).item_ids.to_pylist())
    assert len(missed.examples) == min(missed.counts[5], 5) > 0


@pytest.mark.parametrize("beam_width", [None, 50])
def test_codes_from_elsewhere_are_read_whatever_their_sizes(
    problem: dict[str, Any], tmp_path: Path, beam_width: int | None
):
    """Sizes that the codes tell and sizes that the file states give the same run."""
    ids = Dataset(problem["dataset"]).item_ids
    table = pa.table({"item_id": ids, "codes": [[row % 3, row % 7, row // 20] for row in range(len(ids))]})
    found: list[dict[str, float]] = []
    for name, metadata in (("found", None), ("stated", {"codebook_sizes": "3,7,2"})):
        place = str(tmp_path / f"{name}.parquet")
        pq.write_table(table.replace_schema_metadata(metadata), place)
        config = retrieve_config(
            {**problem, "semantic_ids": place},
            str(tmp_path / name),
            model=HETERREC,
            **CODES_ALONE,
            evaluation={"beam_width": beam_width},
        )
        found.append(run(config).metrics)
        losses = losses_of(config.run)
        assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert found[0].get("valid/beam_agreement@10", 1.0) == 1.0


TIGER = {
    "model": {"kind": "tiger", "encoder": STILL, "decoder": STILL},
    "sequences": {"rows": "sliding"},
    **CODES_ALONE,
}


def test_tiger_trains_and_lists_items_by_its_beam(crowd: dict[str, Any], tmp_path: Path):
    config = retrieve_config(
        crowd,
        str(tmp_path / "tiger"),
        **TIGER,
        evaluation={"beam_width": 40, "masks_history": False},
        train={"batch_size": 100, "max_epochs": 2},
    )
    metrics = run(config).metrics
    losses = losses_of(config.run)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert metrics["test/recall@10"] > 0.33  # 0.25 by chance, of 1,400 targets
    assert metrics["valid/beam_agreement@10"] == 1.0  # as wide as the catalogue


def test_a_narrow_beam_of_tiger_says_what_it_misses(problem: dict[str, Any], tmp_path: Path):
    config = retrieve_config(
        problem,
        str(tmp_path / "tiger"),
        **TIGER,
        evaluation={"beam_width": 5, "cutoffs": [5]},
        train={"max_epochs": 1, "select_by": "ndcg@5"},
    )
    assert 0.05 < run(config).metrics["valid/beam_agreement@5"] < 0.99


WIDE = {"beam_width": 40}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"kind": "tiger"}, **CODES_ALONE, "evaluation": WIDE}, "sequences.rows = 'sliding'"),
        ({"model": {"kind": "tiger"}, "loss": {"item_weight": 0.0}}, "reads codes alone"),
        ({"evaluation": WIDE}, "a beam goes over codes"),
        ({**CODES_ALONE, "evaluation": {"beam_width": 9}}, "9 tuples do not fill lists of 10"),
        ({"evaluation": {"cutoffs": [20]}}, "'ndcg@10' needs 10"),
        ({"loss": {"item_weight": 0.0, "code_weight": 0.0}}, "leaves no loss"),
        ({"loss": {"item_weight": 0.0}, "sampled": {}}, "has no weight"),
        ({"loss": {"item_weight": 0.0, "negatives": "seen"}}, "has no weight"),
        ({"window": 2, "model": {"kind": "tiger"}}, "'tiger' predicts one item a row: set window = 1"),
        ({"finetune": {"recent_items": 3}}, "finetune.recent_items"),
        (
            {"model": {"kind": "rpg"}, "loss": {"code_weight": 0.0}},
            "'rpg' predicts codes.*loss.code_weight = 1",
        ),
        (
            {"model": {"kind": "tiger"}, "loss": {"item_weight": 0.0, "code_weight": 0.0}},
            "'tiger' says codes: set loss.code_weight = 1",
        ),
        (
            {"model": {"kind": "sasrec", "transformer": {"num_heads": 3}}},
            "model.transformer.num_heads: 3 heads do not divide width",
        ),
        ({"model": {"kind": "popularity"}}, "learns nothing: leave out semantic_ids"),
    ],
)
def test_configs_whose_parts_do_not_fit_are_refused_before_anything_runs(
    problem: dict[str, Any], changes: dict[str, Any], words: str
):
    with pytest.raises(ValueError, match=words):
        retrieve_config(problem, "r", **changes)


def test_weights_of_another_map_are_refused(problem: dict[str, Any], tmp_path: Path):
    ids = Dataset(problem["dataset"]).item_ids
    place = str(tmp_path / "other.parquet")
    pq.write_table(pa.table({"item_id": ids, "codes": [[row % 5] * 6 for row in range(len(ids))]}), place)
    first = retrieve_config(problem, str(tmp_path / "a"), train={"max_epochs": 1})
    run(first)
    start = f"{first.run}/checkpoints/step-3"
    again = retrieve_config(problem, str(tmp_path / "b"), start_from=start, train={"max_epochs": 1})
    assert run(again).metrics
    with pytest.raises(CheckpointError, match=r"another map.*Set semantic_ids = '.*/step-3/"):
        run(retrieve_config({**problem, "semantic_ids": place}, str(tmp_path / "c"), start_from=start))
    with pytest.raises(CheckpointError, match=r"Set item\.content_is_unit = true"):
        run(retrieve_config(problem, str(tmp_path / "d"), start_from=start, item={"content_is_unit": False}))
