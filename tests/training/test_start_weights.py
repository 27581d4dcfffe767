"""Training starts from a run on another dataset: rows are taken over by what they stand for."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.other_datasets import changed, rearranged
from tests.jobs.ranking import rank_config, write_problem
from tests.jobs.retrieving import retrieve_config
from tests.ranks import run_ranks
from trec_semid.checkpoints import folder as checkpoint_folder
from trec_semid.checkpoints.folder import best_step
from trec_semid.checkpoints.load import read_tensors
from trec_semid.core.errors import CheckpointError, DataError
from trec_semid.data.schema import Dataset
from trec_semid.embeddings.tables import initial_rows
from trec_semid.evaluation.predictions import read_predictions
from trec_semid.jobs import rank, retrieve
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.training import known_rows

STILL: dict[str, Any] = {
    "optimizers": {"dense": {"learning_rate": 1e-30}, "tables": {"learning_rate": 1e-30}},
    "train": {"max_epochs": 1},
}
"""Changes no weight: what is evaluated is what training started from."""
ROW_WISE = {"tables": {"t_*": {"sharding_types": ["row_wise"]}}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A problem, the same in other rows, and a ranker and a retriever of the first."""
    folder = tmp_path_factory.mktemp("start")
    places = write_problem(str(folder))
    rearranged(places["dataset"], folder / "other")
    rank.run(rank_config(places, str(folder / "ranker"), train={"max_epochs": 2}))
    retrieve.run(retrieve_config(places, str(folder / "retriever"), train={"max_epochs": 2}))
    return folder


def places_of(world: Path, dataset: str = "other") -> dict[str, Any]:
    return {"dataset": str(world / dataset), "semantic_ids": str(world / "codes.parquet")}


def start_of(run: Path) -> str:
    return f"{run}/checkpoints/step-{best_step(f'{run}/checkpoints')}"


def started(world: Path, folder: Path, dataset: str = "other", **changes: Any) -> dict[str, Any]:
    """Rank and retrieve from the runs of the world; return predictions and metrics."""
    places = places_of(world, dataset)
    changes = STILL | changes
    ranker = rank_config(places, str(folder / "ranker"), start_from=start_of(world / "ranker"), **changes)
    rank.run(ranker)
    start = start_of(world / "retriever")
    metrics = retrieve.run(
        retrieve_config(places, str(folder / "retriever"), start_from=start, **changes)
    ).metrics
    return {"scores": read_predictions(ranker.run, "test").score, "metrics": metrics}


def on_two_ranks(world: Path, folder: Path) -> dict[str, Any]:
    return started(world, folder, sharding=ROW_WISE)


def expect_as_before(world: Path, found: dict[str, Any]) -> None:
    before = read_predictions(str(world / "ranker"), "test").score
    np.testing.assert_allclose(found["scores"], before, atol=2e-6)
    assert before.std() > 0.02
    known = retrieve.run(
        retrieve_config(places_of(world, "data"), str(world / "retriever"), train={"max_epochs": 2})
    )
    of_all = {name: value for name, value in known.metrics.items() if name.count("/") == 1}
    assert {"test/recall@10", "valid/ndcg@5"} <= of_all.keys()
    for name, value in of_all.items():  # slices share out equally popular items by their rows
        assert found["metrics"][name] == pytest.approx(value, abs=1e-6), name


def test_a_catalogue_in_another_order_is_scored_as_before(world: Path, tmp_path: Path):
    expect_as_before(world, started(world, tmp_path))


@pytest.mark.slow
@pytest.mark.ranks
def test_the_same_holds_for_tables_that_are_cut_over_two_ranks(world: Path, tmp_path: Path):
    for found in run_ranks(on_two_ranks, 2, world, tmp_path):
        expect_as_before(world, found)


def test_new_items_begin_as_a_fresh_table_would_and_the_others_keep_their_rows(world: Path, tmp_path: Path):
    dataset = Dataset(rearranged(str(world / "data"), world / "grown", seed=1, num_new=5))
    old = SemanticIds.load(str(world / "codes.parquet"))
    known, items = old.item_ids.to_pylist(), dataset.item_ids.to_pylist()
    codes = np.stack([old.codes[known.index(item)] if item in known else [1, 1] for item in items])
    SemanticIds(dataset.item_ids, codes.astype(np.int32), old.sizes).save(str(tmp_path / "codes.parquet"))
    places = {"dataset": str(world / "grown"), "semantic_ids": str(tmp_path / "codes.parquet")}
    start = start_of(world / "ranker")
    config = rank_config(places, str(tmp_path / "run"), start_from=start, seed=3, **STILL)
    rank.run(config)
    np.testing.assert_allclose(
        read_predictions(config.run, "test").score,
        read_predictions(str(world / "ranker"), "test").score,
        atol=2e-6,
    )
    (now, before) = (table_of(run, "t_item_id") for run in (config.run, str(world / "ranker")))
    ids = Dataset(str(world / "data")).item_ids.to_pylist()
    for row, item in enumerate(items):
        if item.startswith("new-"):
            fresh = initial_rows("t_item_id", 8, row, 1, std=config.tables.init_std, seed=3)[0].numpy()
            np.testing.assert_allclose(now[row], fresh, atol=1e-7)
        else:
            np.testing.assert_allclose(now[row], before[ids.index(item)], atol=1e-7)


def table_of(run: str, name: str) -> np.ndarray:
    folder = f"{run}/checkpoints"
    tensors = read_tensors(folder, best_step(folder) or 0, "model/")
    return next(value for key, value in tensors.items() if key.endswith(f"{name}.weight")).numpy()


@pytest.mark.parametrize("damage", ["gone", "flipped", "unsigned"])
@pytest.mark.parametrize("verb", ["ranker", "retriever"])
def test_rows_that_nobody_can_tell_apart_are_refused_before_anything_is_written(
    world: Path, tmp_path: Path, verb: str, damage: str
):
    shutil.copytree(world / verb, tmp_path / "old")
    file = tmp_path / "old/rows" / ("items.parquet" if damage == "flipped" else "rows.json")
    content = file.read_bytes()
    if damage == "gone":
        shutil.rmtree(tmp_path / "old/rows")
    else:
        file.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    make = {"ranker": rank_config, "retriever": retrieve_config}[verb]
    run = {"ranker": rank.run, "retriever": retrieve.run}[verb]
    config = make(places_of(world), str(tmp_path / "new"), start_from=start_of(tmp_path / "old"))
    with pytest.raises(DataError, match="rows") as refused:
        run(config)
    assert "Start from a run that has its rows" in str(refused.value)
    assert not (tmp_path / "new/config.toml").exists()
    # On the very dataset of that run rows are where they were, and nothing has to be matched.
    same = make(places_of(world, "data"), str(tmp_path / "same"), start_from=config.start_from, **STILL)
    assert run(same).metrics


def test_a_damaged_checkpoint_is_refused_before_anything_is_written(world: Path, tmp_path: Path):
    shutil.copytree(world / "ranker", tmp_path / "old")
    place = start_of(tmp_path / "old")
    file = next(Path(place).glob("tensors/*.distcp"))
    content = file.read_bytes()
    file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    config = rank_config(places_of(world, "data"), str(tmp_path / "new"), start_from=place)
    with pytest.raises(CheckpointError, match=rf"start_from: .*{file.name}: damaged"):
        rank.run(config)
    assert not (tmp_path / "new/config.toml").exists()


@pytest.mark.parametrize("dataset", ["data", "other"])
@pytest.mark.parametrize("verb", ["ranker", "retriever"])
def test_weights_of_another_width_are_refused_before_anything_is_written(
    world: Path, tmp_path: Path, verb: str, dataset: str
):
    make = {"ranker": rank_config, "retriever": retrieve_config}[verb]
    run = {"ranker": rank.run, "retriever": retrieve.run}[verb]
    start = start_of(world / verb)
    config = make(places_of(world, dataset), str(tmp_path / "new"), start_from=start, tables={"dim": 24})
    with pytest.raises(CheckpointError, match=r"24\)"):  # the shape that the model has
        run(config)
    assert not [*(tmp_path / "new").glob("*")]


@pytest.mark.parametrize("dataset", ["data", "other"])
def test_the_files_of_a_start_are_read_for_their_checksums_once(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str
):
    verified: list[str] = []
    plain = checkpoint_folder.verify

    def noting(place: str, *args: Any, **kwargs: Any) -> None:
        verified.append(place)
        plain(place, *args, **kwargs)

    monkeypatch.setattr(checkpoint_folder, "verify", noting)
    start = start_of(world / "ranker")
    rank.run(rank_config(places_of(world, dataset), str(tmp_path / "new"), start_from=start, **STILL))
    assert verified.count(start) == 1


def test_other_codes_of_the_same_items_are_refused_also_in_another_order(world: Path, tmp_path: Path):
    ids = SemanticIds.load(str(world / "codes.parquet"))
    codes = ids.codes.copy()
    codes[3, 0] = (codes[3, 0] + 1) % 4
    SemanticIds(ids.item_ids[::-1], codes[::-1].copy(), ids.sizes).save(str(tmp_path / "codes.parquet"))
    places = {**places_of(world), "semantic_ids": str(tmp_path / "codes.parquet")}
    config = rank_config(places, str(tmp_path / "run"), start_from=start_of(world / "ranker"))
    with pytest.raises(CheckpointError, match="trained on another map"):
        rank.run(config)
    assert not (tmp_path / "run/config.toml").exists()


def test_an_item_that_is_gone_leaves_its_row_and_the_counts_are_said(world: Path, tmp_path: Path, capfd):
    dataset = changed(str(world / "data"), tmp_path / "data", "ids")
    ids = SemanticIds.load(str(world / "codes.parquet"))
    now = Dataset(dataset).item_ids
    SemanticIds(now, ids.codes, ids.sizes).save(str(tmp_path / "codes.parquet"))
    places = {"dataset": dataset, "semantic_ids": str(tmp_path / "codes.parquet")}
    config = rank_config(places, str(tmp_path / "run"), start_from=start_of(world / "ranker"), **STILL)
    rank.run(config)
    said = " ".join(capfd.readouterr().err.split())
    matched = "of 'small' and 'other ids' matched by what they stand for:"
    assert f"items {matched} 39 taken over, 1 new, 1 gone" in said
    assert f"users {matched} 60 taken over, 0 new, 0 gone" in said
    assert said.count(f"items {matched}") == said.count(f"users {matched}") == 1


def test_a_run_goes_on_though_what_it_started_from_is_gone(world: Path, tmp_path: Path):
    shutil.copytree(world / "ranker", tmp_path / "old")
    started_from = rank_config(
        places_of(world), str(tmp_path / "new"), start_from=start_of(tmp_path / "old"), **STILL
    )
    before = rank.run(started_from).metrics
    shutil.rmtree(tmp_path / "old")
    more = {**STILL, "train": {"max_epochs": 2}}
    config = rank_config(places_of(world), str(tmp_path / "new"), start_from=started_from.start_from, **more)
    assert rank.run(config).metrics["test/auc"] == pytest.approx(before["test/auc"], abs=1e-6)


def test_what_rows_stand_for_is_written_again_for_another_dataset_and_else_left_alone(
    world: Path, tmp_path: Path
):
    run = str(tmp_path / "run")
    for name in ("data", "other", "other"):
        known_rows.write_known_rows(run, Dataset(str(world / name)))
        assert known_rows.read_known_rows(run).dataset_checksum == Dataset(str(world / name)).facts.checksum
    written = (tmp_path / "run/rows/items.parquet").stat().st_mtime_ns
    known_rows.write_known_rows(run, Dataset(str(world / "other")))
    assert (tmp_path / "run/rows/items.parquet").stat().st_mtime_ns == written


@given(st.lists(st.text(max_size=3), unique=True), st.lists(st.text(max_size=3), unique=True), st.booleans())
def test_rows_are_matched_as_by_hand(before: list[str], now: list[str], is_field: bool):
    import pyarrow as pa

    rows = known_rows._map(pa.array(before, pa.string()), pa.array(now, pa.string()), is_field=is_field)
    expected = [before.index(value) if value in before else -1 for value in now]
    if is_field and expected:
        expected[0] = 0
    assert rows.old_rows.tolist() == expected
    assert rows.num_old == len(before)
