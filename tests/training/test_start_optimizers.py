"""Started with its optimizers, a run has another's very state: by ids, and fresh where it has grown."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.jobs.other_datasets import rearranged
from tests.jobs.ranking import rank_config, write_problem
from tests.jobs.retrieving import retrieve_config
from tests.ranks import run_ranks
from trec_semid.checkpoints.folder import best_step
from trec_semid.checkpoints.load import read_tensors
from trec_semid.checkpoints.save import CheckpointWriter
from trec_semid.checkpoints.tensors import Trainable, hyperparameters
from trec_semid.core.errors import CheckpointError
from trec_semid.data.schema import Dataset
from trec_semid.embeddings.tables import initial_rows
from trec_semid.jobs import rank, retrieve
from trec_semid.runtime.logs import RunLog
from trec_semid.runtime.runs import RunFolder
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.training.ranking.setup import read_inputs as rank_inputs
from trec_semid.training.ranking.task import ranking_task
from trec_semid.training.retrieval.inputs import read_inputs as retrieve_inputs
from trec_semid.training.retrieval.task import retrieval_task
from trec_semid.training.run import training_ranks
from trec_semid.training.start_weights import find_start_weights

ROW_WISE = {"tables": {"t_*": {"sharding_types": ["row_wise"]}}}
ADAM = {"tables": {"kind": "adam", "learning_rate": 0.01}}
Tensors = dict[str, np.ndarray]


class World(NamedTuple):
    folder: Path
    places: dict[str, Any]
    grown: dict[str, Any]
    """Where the dataset with new items lies, in another order."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("optimizers")
    places = write_problem(str(folder))
    dataset = Dataset(rearranged(places["dataset"], folder / "grown", seed=1, num_new=5))
    old = SemanticIds.load(places["semantic_ids"])
    known, items = old.item_ids.to_pylist(), dataset.item_ids.to_pylist()
    codes = np.stack([old.codes[known.index(item)] if item in known else [1, 1] for item in items])
    place = str(folder / "grown.parquet")
    SemanticIds(dataset.item_ids, codes.astype(np.int32), old.sizes).save(place)
    for name, run, config in (
        ("rank", rank.run, rank_config),
        ("retrieve", retrieve.run, retrieve_config),
        ("adam", rank.run, rank_config),
    ):
        more = {"optimizers": ADAM} if name == "adam" else {}
        run(config(places, str(folder / name), train={"max_epochs": 1}, **more))
    return World(folder, places, {"dataset": dataset.uri, "semantic_ids": place})


def start_of(world: World, run: str) -> str:
    checkpoints = f"{world.folder}/{run}/checkpoints"
    return f"{checkpoints}/step-{best_step(checkpoints)}"


def save_start(config: Any) -> None:
    """Start as a run does, and save what it has before its first step."""
    with training_ranks(config.train) as ranks, closing(RunLog(config.run, ranks.rank)) as log:
        folder = RunFolder(config.run, "")
        if isinstance(config, rank.RankConfig):
            inputs: Any = rank_inputs(config)
            task = ranking_task(config, inputs, folder, ranks, log)
        else:
            inputs = retrieve_inputs(config)
            task, _ = retrieval_task(config, inputs, folder, ranks, log)
        start = find_start_weights(config, inputs)
        assert start
        optimizers: dict[str, Any] = {"fused": task.model.fused_optimizer, "dense": task.updates.dense}
        if task.updates.replicated:
            optimizers["replicated"] = task.updates.replicated
        trainable = Trainable(task.model, optimizers)
        rates = {name: hyperparameters(optimizer) for name, optimizer in optimizers.items()}
        start.load(trainable)
        assert rates == {name: hyperparameters(optimizer) for name, optimizer in optimizers.items()}
        CheckpointWriter(folder.path("checkpoints")).save(1, trainable, loop={})


def saved(run: str, step: int) -> Tensors:
    return {name: value.numpy() for name, value in read_tensors(f"{run}/checkpoints", step, "").items()}


def before(world: World, run: str) -> Tensors:
    return saved(f"{world.folder}/{run}", int(start_of(world, run).rpartition("-")[2]))


MAKE: dict[str, Callable[..., Any]] = {"rank": rank_config, "retrieve": retrieve_config, "adam": rank_config}


@pytest.mark.parametrize("name", ["rank", "retrieve", "adam"])
def test_on_the_same_dataset_the_state_is_that_of_a_run_that_goes_on(world: World, tmp_path: Path, name: str):
    more = {"optimizers": ADAM} if name == "adam" else {}
    start = start_of(world, name)
    save_start(
        MAKE[name](world.places, str(tmp_path), start_from=start, start_optimizers=True, seed=8, **more)
    )
    now, then = saved(str(tmp_path), 1), before(world, name)
    assert now.keys() == then.keys()
    assert any(key.startswith("optimizer/dense/") for key in then)
    assert any("t_item_id" in key and key.startswith("optimizer/") for key in then)
    for key, value in then.items():
        np.testing.assert_array_equal(now[key], value, err_msg=key)


def expect_grown(world: World, name: str, now: Tensors) -> None:
    """New items have a fresh row and no state; every other row, and all else, is what it was."""
    then, items = before(world, name), Dataset(world.grown["dataset"]).item_ids.to_pylist()
    ids = Dataset(world.places["dataset"]).item_ids.to_pylist()
    old = np.array([ids.index(item) if item in ids else -1 for item in items])
    assert (old < 0).sum() == 5
    assert now.keys() == then.keys()
    for key, value in then.items():
        if key.endswith("live.codes"):
            continue
        if "t_item_id.weight" not in key or value.ndim == 0:
            # Users and values of fields come in another order: the same rows, each once.
            of_rows = any(name in key for name in ("user", "genres", "year")) and value.ndim
            left, right = (np.sort(each, axis=0) if of_rows else each for each in (now[key], value))
            np.testing.assert_array_equal(left, right, err_msg=key)
            continue
        np.testing.assert_array_equal(now[key][old >= 0], value[old[old >= 0]], err_msg=key)
        assert np.abs(value).max() > 0
        for row in np.flatnonzero(old < 0):
            fresh = np.zeros_like(value[0])
            if key.startswith("model/"):
                std = MAKE[name](world.places, "r").tables.init_std
                fresh = initial_rows("t_item_id", 8, int(row), 1, std=std, seed=8)[0].numpy()
            np.testing.assert_allclose(now[key][row], fresh, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("name", ["rank", "retrieve", "adam"])
def test_on_a_grown_dataset_rows_bring_their_state_and_new_ones_have_none(
    world: World, tmp_path: Path, name: str
):
    more = {"optimizers": ADAM} if name == "adam" else {}
    start = start_of(world, name)
    save_start(
        MAKE[name](world.grown, str(tmp_path), start_from=start, start_optimizers=True, seed=8, **more)
    )
    expect_grown(world, name, saved(str(tmp_path), 1))


@pytest.mark.slow
@pytest.mark.ranks
def test_so_do_tables_that_are_cut_over_two_ranks(world: World, tmp_path: Path):
    more = {"start_optimizers": True, "seed": 8, "sharding": ROW_WISE}
    run_ranks(
        save_start, 2, rank_config(world.grown, str(tmp_path), start_from=start_of(world, "rank"), **more)
    )
    expect_grown(world, "rank", saved(str(tmp_path), 1))


def test_other_codes_begin_anew_where_that_is_asked_for_and_nothing_else_does(world: World, tmp_path: Path):
    ids = SemanticIds.load(world.places["semantic_ids"])
    place = str(tmp_path / "codes.parquet")
    SemanticIds(ids.item_ids, ids.codes[::-1].copy(), ids.sizes).save(place)
    places = {**world.places, "semantic_ids": place}
    more: dict[str, Any] = {"start_from": start_of(world, "rank"), "start_optimizers": True, "seed": 8}
    with pytest.raises(CheckpointError, match="start_codes = 'anew'"):
        rank.run(rank_config(places, str(tmp_path / "refused"), **more))
    save_start(rank_config(places, str(tmp_path / "run"), start_codes="anew", **more))
    now, then = saved(str(tmp_path / "run"), 1), before(world, "rank")
    for key, value in then.items():
        if "code" not in key or not value.ndim:
            np.testing.assert_array_equal(now[key], value, err_msg=key)
        elif key.startswith("optimizer/"):
            assert not now[key].any(), key
        else:
            fresh = initial_rows(key.split(".")[-2], 8, 0, len(value), std=0.01, seed=8).numpy()
            assert np.abs(now[key] - value).min(axis=1).max() > 0, key
            assert now[key].std() == pytest.approx(fresh.std(), rel=0.5)


def test_a_start_that_makes_no_sense_is_refused(world: World):
    with pytest.raises(ValueError, match="start_optimizers: there is nothing to start from"):
        rank_config(world.places, "r", start_optimizers=True)
    with pytest.raises(ValueError, match="start_codes = 'anew': heads that predict codes"):
        retrieve_config(world.places, "r", start_from="x/checkpoints/step-1", start_codes="anew")
