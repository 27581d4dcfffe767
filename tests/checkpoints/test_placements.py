"""A run goes on under any other placement and number of ranks, with the state that its optimizers had."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints.training import Setup, contents, save_checkpoint, set_up, train
from tests.ranks import run_ranks
from tests.sharding.models import ROWS
from trec_semid.checkpoints.load import load_checkpoint
from trec_semid.checkpoints.mapped import RowMap
from trec_semid.checkpoints.placements import as_placed_now, sources_of_state
from trec_semid.checkpoints.tensors import named_tensors
from trec_semid.core.errors import CheckpointError
from trec_semid.runtime.ranks import Ranks, process_group
from trec_semid.sharding.optimizer import SparseOptimizerConfig
from trec_semid.sharding.tables import table_shards

PLANS = {
    "by rows": ("row_wise", "row_wise"),
    "whole": ("table_wise", "table_wise"),
    "copies": ("data_parallel", "row_wise"),  # a CPU has no copies of tables that are not pooled
    "by columns": ("column_wise", "table_wise"),
}
ROW_WISE = [plan for plan in PLANS if plan != "by columns"]  # whose row state would be another one's
SAVED_ON, LOADED_ON = (1, 3), (1, 2, 4)
STEPS, MORE = 3, 5


class Case:
    """Checkpoints of one optimizer under several placements."""

    def __init__(self, folder: str, kind: str, plans: list[str]) -> None:
        self.folder, self.plans = folder, plans
        self.optimizer = SparseOptimizerConfig.model_validate({"kind": kind, "learning_rate": 0.1})

    def set_up(self, ranks: Ranks, plan: str, seed: int) -> Setup:
        bags, codes = PLANS[plan]
        return set_up(ranks, bags=bags, codes=codes, seed=seed, optimizer=self.optimizer)

    def place(self, plan: str, world_size: int) -> str:
        return f"{self.folder}/{plan}-{world_size}".replace(" ", "-")


def parts_of(setup: Setup) -> dict[str, Any]:
    """Return this rank's parts of tables and of their squared gradients, by table: (row, column, values)."""
    sums: dict[str, Any] = {}
    for name, tensor in named_tensors(setup.trainable).items():
        if name.startswith("optimizer/") and name.endswith((".momentum1", "/sum")):
            table = name.split("/")[2].split(".")[-2]
            sums[table] = [
                (r, c, part.reshape(len(part), -1).numpy().copy()) for r, c, part in table_shards(tensor)
            ]
    return {**contents(setup), "sums": sums}


def whole(ranks: list[dict[str, Any]], of: str, table: str) -> Any:
    parts = [part for rank in ranks for part in rank[of].get(table, [])]
    width = max(column + values.shape[1] for _, column, values in parts)
    array = np.full((ROWS[table], width), np.nan, np.float32)
    for row, column, values in parts:
        array[row : row + len(values), column : column + values.shape[1]] = values
    return array


def save_all(case: Case) -> dict[str, Any]:
    with process_group() as ranks:
        said = {}
        for plan in case.plans:
            setup = case.set_up(ranks, plan, seed=1)
            train(setup, ranks, 0, STEPS, dropout=0.0)
            loop = {"schedule": setup.schedule.state_dict()}
            save_checkpoint(case.place(plan, ranks.world_size), STEPS, setup.trainable, loop=loop)
            said[plan] = parts_of(setup), train(setup, ranks, STEPS, MORE, dropout=0.0)
        return said


def load_all(case: Case) -> dict[tuple[str, int, str], Any]:
    with process_group() as ranks:
        said = {}
        for plan in case.plans:
            setup = case.set_up(ranks, plan, seed=2)
            for world_size in SAVED_ON:
                for before in case.plans:
                    loop = load_checkpoint(case.place(before, world_size), setup.trainable).loop
                    setup.schedule.load_state_dict(loop["schedule"])
                    parts = parts_of(setup)
                    losses = train(setup, ranks, STEPS, MORE, dropout=0.0)
                    said[before, world_size, plan] = parts, losses
        return said


@pytest.fixture(
    scope="module",
    params=[("row_wise_adagrad", ROW_WISE), ("adagrad", ["by columns", "copies"])],
    ids=["row-wise", "full"],
)
def told(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Mapping[int, list[Any]], Mapping[int, list[Any]]]:
    case = Case(str(tmp_path_factory.mktemp("placements")), *request.param)
    saved = {world_size: run_ranks(save_all, world_size, case) for world_size in SAVED_ON}
    return saved, {world_size: run_ranks(load_all, world_size, case) for world_size in LOADED_ON}


@pytest.mark.ranks
def test_weights_and_state_are_those_that_were_saved_bit_for_bit(told: Any):
    saved, loaded = told
    pairs = 0
    for ranks in loaded.values():
        for before, world_size, plan in ranks[0]:
            old = [rank[before][0] for rank in saved[world_size]]
            new = [rank[before, world_size, plan][0] for rank in ranks]
            for table in ROWS:
                for of in ("tables", "sums"):
                    one, other = whole(old, of, table), whole(new, of, table)
                    assert not np.isnan(one).any()
                    assert (one > 0).any()
                    np.testing.assert_array_equal(one, other, err_msg=f"{before} -> {plan}, {of} of {table}")
            np.testing.assert_array_equal(old[0]["dense"], new[0]["dense"])
            pairs += 1
    plans = {plan for _, _, plan in loaded[1][0]}
    assert pairs == len(plans) ** 2 * len(SAVED_ON) * len(LOADED_ON)


@pytest.mark.ranks
def test_training_goes_on_as_if_it_had_never_been_placed_otherwise(told: Any):
    saved, loaded = told
    for now, ranks in loaded.items():
        for (before, world_size, plan), (_, losses) in ranks[0].items():
            # They come summed over ranks, of which each gives the mean.
            never_stopped = np.array(saved[world_size][0][before][1]) / world_size
            assert np.array(losses) / now == pytest.approx(never_stopped, rel=1e-5), f"{before} -> {plan}"


SHAPES = {
    "model/x.t_a.weight": (5, 4),
    "optimizer/fused/x.t_a.weight/t_a.momentum1": (5,),
    "optimizer/dense/y/exp_avg": (3,),
}
COPIES = {
    "model/x.t_a.weight": (5, 4),
    "optimizer/replicated/x.t_a.weight/sum": (5, 1),
    "optimizer/replicated/x.t_a.weight/step": (),
    "optimizer/dense/y/exp_avg": (3,),
}


def test_names_and_shapes_of_one_placement_are_told_as_the_others():
    assert sources_of_state(SHAPES, SHAPES) == {}
    assert as_placed_now(SHAPES, SHAPES) == SHAPES
    assert as_placed_now(SHAPES, COPIES) == COPIES
    assert as_placed_now(COPIES, SHAPES) == SHAPES
    more_rows = {**COPIES, "optimizer/replicated/x.t_a.weight/sum": (9, 1)}
    assert as_placed_now(SHAPES, more_rows)["optimizer/replicated/x.t_a.weight/sum"] == (5, 1)


def test_adam_s_two_moments_are_not_taken_for_adagrad_s_sum():
    adam = {
        "optimizer/replicated/x.t_a.weight/exp_avg": (5, 4),
        "optimizer/replicated/x.t_a.weight/exp_avg_sq": (5, 4),
    }
    assert sources_of_state(adam, SHAPES) == {}
    assert sources_of_state(SHAPES, adam) == {}


@pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered.*:UserWarning")
def test_state_that_was_never_there_is_refused(tmp_path: Path):
    with process_group() as ranks:
        before = set_up(
            ranks, bags="data_parallel", optimizer=SparseOptimizerConfig.model_validate({"kind": "sgd"})
        )
        train(before, ranks, 0, 1)
        save_checkpoint(str(tmp_path), 1, before.trainable)
        after = set_up(ranks)  # row-wise Adagrad
        with pytest.raises(CheckpointError, match=r"t_item.momentum1: in the model, not in the checkpoint"):
            load_checkpoint(str(tmp_path), after.trainable)


@pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered.*:UserWarning")
@pytest.mark.parametrize(("before", "now"), [("copies", "by rows"), ("by rows", "copies")])
def test_rows_that_move_take_their_state_along_under_another_placement(tmp_path: Path, before: str, now: str):
    case = Case(str(tmp_path), "row_wise_adagrad", [])
    rng = np.random.default_rng(0)
    old_rows = rng.permutation(ROWS["t_user"])
    old_rows[rng.random(len(old_rows)) < 0.3] = -1
    with process_group() as ranks:
        saved = case.set_up(ranks, before, seed=1)
        train(saved, ranks, 0, STEPS, dropout=0.0)
        save_checkpoint(str(tmp_path), STEPS, saved.trainable)
        loaded = case.set_up(ranks, now, seed=2)
        fresh = parts_of(loaded)
        mapped = {"model/bags.embedding_bags.t_user.weight": RowMap(old_rows, ROWS["t_user"])}
        load_checkpoint(str(tmp_path), loaded.trainable, mapped=mapped)
        for of in ("tables", "sums"):
            one, new, other = (
                whole([parts], of, "t_user") for parts in (parts_of(saved), fresh, parts_of(loaded))
            )
            expected = np.where((old_rows >= 0)[:, None], one[old_rows], new)
            np.testing.assert_array_equal(other, expected)
            np.testing.assert_array_equal(
                whole([parts_of(saved)], of, "t_item"), whole([parts_of(loaded)], of, "t_item")
            )
