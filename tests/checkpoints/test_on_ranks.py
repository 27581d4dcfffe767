from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints.training import contents, save_checkpoint, set_up, train
from tests.ranks import run_ranks
from tests.sharding.models import DIM, ROWS
from trec_semid.checkpoints.folder import complete_steps, read_facts, read_file
from trec_semid.checkpoints.load import load_checkpoint, read_tensors
from trec_semid.checkpoints.save import CheckpointWriter
from trec_semid.checkpoints.stretches import SavedTensors
from trec_semid.core.errors import CheckpointError
from trec_semid.runtime.ranks import process_group

pytestmark = pytest.mark.ranks
LOOP = {"epoch": 1, "position": [3, 7], "best": None}


def on_two_ranks(folder: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    with process_group() as ranks:
        torch.manual_seed(ranks.rank)
        setup = set_up(ranks)
        train(setup, ranks, 0, 3)
        writer = CheckpointWriter(folder + "/two", in_background=True)
        writer.save(3, setup.trainable, loop={**LOOP, "schedule": setup.schedule.state_dict()})
        facts["at save"] = contents(setup)
        facts["losses, never stopped"] = train(setup, ranks, 3, 6)  # while the save is still running
        writer.wait()
        facts["never stopped"] = contents(setup)

        torch.manual_seed(99)
        again = set_up(ranks, seed=2)
        loaded = load_checkpoint(folder + "/two", again.trainable)
        again.schedule.load_state_dict(loaded.loop.pop("schedule"))
        facts["loaded"] = (loaded.step, loaded.loop, contents(again))
        facts["losses, resumed"] = train(again, ranks, 3, 6)
        facts["resumed"] = contents(again)

        from_one = set_up(ranks, bags="table_wise", codes="row_wise", seed=3)
        load_checkpoint(folder + "/one", from_one.trainable)
        facts["one to two"] = contents(from_one)

        columns = set_up(ranks, bags="column_wise")
        try:
            load_checkpoint(folder + "/two", columns.trainable)
        except CheckpointError as error:
            facts["other columns"] = str(error)
        try:
            save_checkpoint("memory://x", 1, setup.trainable, loop={})
        except CheckpointError as error:
            facts["private memory"] = str(error)
        return facts


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("checkpoints")
    known: dict[str, Any] = {"folder": folder}
    with process_group() as ranks:
        one = set_up(ranks)
        train(one, ranks, 0, 2)
        save_checkpoint(f"file://{folder}/one", 2, one.trainable, loop={})
        known["one"] = [contents(one)]
        known["two"] = run_ranks(on_two_ranks, 2, str(folder))
        two = set_up(ranks, seed=4)
        load_checkpoint(f"{folder}/two", two.trainable)
        known["two to one"] = [contents(two)]
        known["losses, on one"] = train(two, ranks, 3, 6)
    return known


def whole(parts: list[dict[str, Any]], name: str) -> np.ndarray:
    table = np.full((ROWS[name], DIM), np.nan, np.float32)
    for part in parts:
        for row, column, values in part["tables"][name]:
            table[row : row + values.shape[0], column : column + values.shape[1]] = values
    return table


def assert_equal(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    for name in ROWS:
        np.testing.assert_array_equal(whole(left, name), whole(right, name))
    np.testing.assert_array_equal(left[0]["dense"], right[0]["dense"])
    assert left[0]["rate"] == right[0]["rate"]


def of_ranks(facts: dict[str, Any], key: str) -> list[Any]:
    return [rank[key] for rank in facts["two"]]


def test_resuming_equals_never_having_stopped_bit_for_bit(facts: dict[str, Any]):
    assert of_ranks(facts, "losses, resumed") == of_ranks(facts, "losses, never stopped")
    assert_equal(of_ranks(facts, "resumed"), of_ranks(facts, "never stopped"))


def test_a_background_save_holds_the_moment_of_the_call(facts: dict[str, Any]):
    assert_equal([loaded for _, _, loaded in of_ranks(facts, "loaded")], of_ranks(facts, "at save"))
    before, after = of_ranks(facts, "at save"), of_ranks(facts, "never stopped")
    assert np.abs(whole(before, "t_user") - whole(after, "t_user")).max() > 1e-3


def test_loop_values_come_back(facts: dict[str, Any]):
    assert [(step, loop) for step, loop, _ in of_ranks(facts, "loaded")] == [(3, LOOP)] * 2


def test_two_ranks_load_what_one_saved_under_another_placement(facts: dict[str, Any]):
    assert_equal(of_ranks(facts, "one to two"), facts["one"])


def test_one_rank_loads_what_two_saved_and_trains_on(facts: dict[str, Any]):
    assert_equal(facts["two to one"], of_ranks(facts, "at save"))
    assert np.isfinite(facts["losses, on one"]).all()


def test_row_state_of_other_column_shards_is_refused_with_a_remedy(facts: dict[str, Any]):
    for text in of_ranks(facts, "other columns"):
        assert "optimizer/fused/bags.embedding_bags.t_user.weight/t_user.momentum1: got (37,)" in text
        assert "or leave the optimizer out" in text


def test_several_ranks_cannot_save_to_private_memory(facts: dict[str, Any]):
    for text in of_ranks(facts, "private memory"):
        assert "memory:// is private to a process" in text


def test_the_marker_says_who_saved(facts: dict[str, Any]):
    folder: Path = facts["folder"]
    assert complete_steps(str(folder / "two")) == [3]
    saved = read_facts(str(folder / "two"), 3)
    assert (saved.step, saved.world_size, saved.is_best) == (3, 2, False)
    assert b'"epoch": 1' in read_file(str(folder / "two"), 3, "loop.json")


@pytest.mark.parametrize("num_rows", [1, 3, 1000])
def test_stretches_of_rows_are_those_of_the_whole_tables_of_two_ranks(facts: dict[str, Any], num_rows: int):
    saved = SavedTensors(f"{facts['folder']}/two", 3, "model/")
    expected = read_tensors(f"{facts['folder']}/two", 3, "model/")
    assert sorted(saved.names) == sorted(expected)
    for name, values in expected.items():
        assert saved.shape(name) == tuple(values.shape)
        assert torch.equal(saved.whole(name), values)
        if values.dim() == 2:
            firsts = range(0, len(values), num_rows)
            parts = [saved.rows(name, first, min(first + num_rows, len(values))) for first in firsts]
            assert torch.equal(torch.cat(parts), values)
    tables = {name.split(".")[-2]: values for name, values in expected.items() if name.endswith(".weight")}
    for name in ROWS:
        np.testing.assert_array_equal(tables[name], whole(of_ranks(facts, "at save"), name))
