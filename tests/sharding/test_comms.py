"""What rounding on the way between ranks does, beside the same rounding written out, and how far it leads."""

import json
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.ranks import run_ranks
from tests.sharding.models import BAGS, DIM, ROWS, STEPS, TinyModel, global_batch, my_part, train_by_hand
from tests.sharding.test_apply import SEED, STD, Case, rules, sparse_optimizer
from trec_semid.core.identity import compare
from trec_semid.embeddings.tables import initial_rows
from trec_semid.runtime.ranks import Ranks, process_group
from trec_semid.sharding.apply import shard_model
from trec_semid.sharding.comms import CommsConfig, ScaledCodec, build_codecs
from trec_semid.sharding.constraints import ShardingConfig
from trec_semid.sharding.initialise import initialise_tables
from trec_semid.sharding.plan import TablePlan, plan_on_ranks
from trec_semid.sharding.tables import find_tables, table_shards

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
STEP = {"fp16": 2.0**-11, "bf16": 2.0**-8}
"""Largest rounding of a number, as a part of it."""


class Rounded(NamedTuple):
    placement: str
    forward: str = "fp32"
    backward: str = "fp32"
    loss_scale: float = 1.0
    """What the loss is multiplied by, as a mean over more rows would be."""


CASES = {
    f"{placement} {forward} {backward}": Rounded(placement, forward, backward)
    for placement in ("table_wise", "row_wise", "column_wise")
    for forward, backward in (("fp32", "fp32"), ("fp16", "fp16"), ("bf16", "bf16"), ("fp32", "fp16"))
} | {
    "data_parallel": Rounded("data_parallel"),
    "data_parallel bf16": Rounded("data_parallel", "bf16", "bf16"),
    "tiny fp32": Rounded("table_wise", loss_scale=1e-8),
    "tiny fp16": Rounded("table_wise", backward="fp16", loss_scale=1e-8),
}


def train(ranks: Ranks, case: Rounded) -> dict[str, Any]:
    """Train the tables of the small model by SGD; its linear layer stays: all that moves has travelled."""
    optimizer = sparse_optimizer("sgd")
    if case.loss_scale != 1:
        optimizer = optimizer.model_copy(update={"learning_rate": optimizer.learning_rate / case.loss_scale})
    comms = CommsConfig.model_validate({"forward": case.forward, "backward": case.backward})
    codes = "row_wise" if case.placement == "data_parallel" else case.placement
    placed = rules(Case(case.placement, codes)).model_copy(update={"comms": comms})
    model = TinyModel()
    plan = plan_on_ranks(model, ranks, placed, batch_size=5, optimizer=optimizer)
    # As many rows as the loss is a mean over: what float16 gradients are scaled by.
    plan = replace(plan, batch_size=round(5 / case.loss_scale))
    sharded = shard_model(model, plan, ranks, optimizer)
    initialise_tables(sharded, std=STD, seed=SEED)
    logits, losses = [], []
    first, _ = my_part(global_batch(0), ranks.rank, ranks.world_size)
    with torch.no_grad():
        sharded.eval()
        evaluated = sharded(first.keyed_jagged(BAGS), first.keyed_jagged(("code",))).numpy().copy()
    sharded.train()
    for step in range(STEPS):
        batch = global_batch(step)
        mine, weights = my_part(batch, ranks.rank, ranks.world_size)
        said = sharded(mine.keyed_jagged(BAGS), mine.keyed_jagged(("code",)))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            said, mine.labels, weights, reduction="sum"
        )
        (loss * ranks.world_size / len(batch.labels) * case.loss_scale).backward()
        logits.append(said.detach().numpy().copy())
        losses.append(loss.item())
    state = sharded.state_dict()
    tables = {
        f"{table.name} {row} {column}": part.numpy().copy()
        for table in find_tables(sharded)
        for row, column, part in table_shards(state[table.key])
    }
    return {
        "logits": logits,
        "losses": losses,
        "tables": tables,
        "text": plan.as_text(),
        "evaluated": evaluated,
    }


def train_all() -> dict[str, dict[str, Any]]:
    with process_group() as ranks:
        return {name: train(ranks, case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, dict[str, Any]]]:
    return run_ranks(train_all, 2)


def looked_up(rank: int, dtype: torch.dtype) -> Tensor:
    """Return the logits of this rank's rows of the first batch, every looked-up vector rounded on its way."""
    tables = {name: initial_rows(name, DIM, 0, rows, std=STD, seed=SEED) for name, rows in ROWS.items()}
    ids = my_part(global_batch(0), rank, 2).rows.ids
    none = torch.zeros(DIM)
    columns = [
        torch.stack([tables["t_user"][one].sum(0) for one in ids["user"]]),
        torch.stack([tables["t_item"][one].mean(0) if one else none for one in ids["item"]]),
        torch.stack([tables["t_item"][one].mean(0) if one else none for one in ids["history"]]),
        torch.stack([tables["t_code"][one][0] for one in ids["code"]]),
    ]
    vectors = torch.cat(columns, 1).to(dtype).float()
    return vectors @ torch.linspace(-1, 1, 4 * DIM) + 0.1


@pytest.mark.ranks
@pytest.mark.parametrize("precision", DTYPES)
def test_looked_up_vectors_are_rounded_once(two_ranks: list[dict[str, Any]], precision: str):
    """Whole tables: what travels is the pooled vector, so the rounding can be written out."""
    for rank, facts in enumerate(two_ranks):
        found = torch.from_numpy(facts[f"table_wise {precision} {precision}"]["logits"][0])
        torch.testing.assert_close(found, looked_up(rank, DTYPES[precision]), rtol=0, atol=1e-6)
        assert (found - looked_up(rank, torch.float32)).abs().max() > 1e-5


@pytest.mark.ranks
def test_nothing_is_rounded_in_evaluation(two_ranks: list[dict[str, Any]]):
    for rank, facts in enumerate(two_ranks):
        exact = looked_up(rank, torch.float32)
        for name, case in CASES.items():
            found = torch.from_numpy(facts[name]["evaluated"])
            torch.testing.assert_close(found, exact, rtol=0, atol=4e-6)
            trained = torch.from_numpy(facts[name]["logits"][0])
            assert ((trained - exact).abs().max() > 4e-6) == (case.forward != "fp32")


@pytest.mark.ranks
@pytest.mark.parametrize("placement", ["table_wise", "row_wise", "column_wise"])
def test_training_stays_as_near_as_the_precision_is(two_ranks: list[dict[str, Any]], placement: str):
    for facts in two_ranks:
        whole = facts[f"{placement} fp32 fp32"]
        for precision, step in STEP.items():
            rounded = facts[f"{placement} {precision} {precision}"]
            np.testing.assert_allclose(rounded["losses"], whole["losses"], rtol=8 * step)
            assert rounded["losses"] != whole["losses"]
            for name, table in whole["tables"].items():
                np.testing.assert_allclose(rounded["tables"][name], table, rtol=0, atol=4 * step)
        # Gradients alone are rounded: the first forward has not seen any yet.
        backward = facts[f"{placement} fp32 fp16"]
        np.testing.assert_array_equal(backward["logits"][0], whole["logits"][0])
        assert any((backward["tables"][name] != table).any() for name, table in whole["tables"].items())


@pytest.mark.ranks
def test_as_they_are_is_the_training_written_out_by_hand(two_ranks: list[dict[str, Any]]):
    """The oracle's layer learns as well, from its second step on: the first loss is that of both."""
    wanted = train_by_hand(sparse_optimizer("sgd"), std=STD, seed=SEED).losses[0]
    for placement in ("table_wise", "row_wise", "column_wise"):
        total = sum(facts[f"{placement} fp32 fp32"]["losses"][0] for facts in two_ranks)
        assert total / len(global_batch(0).labels) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.ranks
def test_gradients_of_a_mean_over_very_many_rows_survive_float16(two_ranks: list[dict[str, Any]]):
    """They are below the smallest float16; without a scale tables would stay as they were drawn."""
    assert torch.tensor(1e-8).half() == 0
    for facts in two_ranks:
        for name, table in facts["tiny fp32"]["tables"].items():
            np.testing.assert_allclose(facts["tiny fp16"]["tables"][name], table, rtol=0, atol=1e-3)
    drawn = {name: initial_rows(name, DIM, 0, rows, std=STD, seed=SEED) for name, rows in ROWS.items()}
    parts = {name: part for facts in two_ranks for name, part in facts["tiny fp16"]["tables"].items()}
    moved = [np.abs(part - drawn[name.split()[0]].numpy()).max() for name, part in parts.items()]
    assert min(moved) > 0.005


@pytest.mark.ranks
def test_replicated_tables_exchange_nothing(two_ranks: list[dict[str, Any]]):
    for facts in two_ranks:
        whole, rounded = facts["data_parallel"], facts["data_parallel bf16"]
        # Codes lie by rows in both: only these are rounded.
        for name in ("t_user 0 0", "t_item 0 0"):
            np.testing.assert_array_equal(rounded["tables"][name], whole["tables"][name])


@pytest.mark.ranks
def test_a_plan_says_what_is_rounded(two_ranks: list[dict[str, Any]]):
    text = "Between ranks, in training, rows travel as bf16, their gradients as bf16."
    assert text in two_ranks[1]["row_wise bf16 bf16"]["text"]
    assert "travel" not in two_ranks[1]["row_wise fp32 fp32"]["text"]


def test_a_scaled_half_rounds_as_a_half_does_at_any_size():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e-7
    codec = ScaledCodec("fp16", 2.0**23)
    assert codec.encode(x).dtype == torch.float16
    back = codec.decode(codec.encode(x))
    assert ((back - x).abs() <= STEP["fp16"] * x.abs() + 1e-14).all()
    assert ((x.half().float() - x).abs() > 0.1 * x.abs()).float().mean() > 0.5


def test_nothing_is_rounded_where_nothing_is_asked():
    assert build_codecs(CommsConfig(), 1024) is None


def test_precisions_are_of_the_run_and_rules_are_not():
    rule = {"tables": {"t_*": {"sharding_types": ["row_wise"]}}}
    plain, rounded = ({"comms": {"forward": one}} for one in ("fp32", "bf16"))
    one, other = (ShardingConfig.model_validate(each) for each in (plain, rounded))
    assert [each.key for each in compare(one, other).differences] == ["comms.forward"]
    assert compare(one, ShardingConfig.model_validate(plain | rule)) == ([], False)


def test_an_unknown_precision_is_refused_with_those_there_are():
    with pytest.raises(ValidationError, match="'fp32', 'fp16' or 'bf16'"):
        CommsConfig.model_validate({"backward": "int8"})


def test_a_plan_saved_before_there_were_precisions_is_read():
    cluster = {"num_nodes": 1, "devices_per_node": 1, "device": "cpu", "ddr_gib": 1}
    saved = {"cluster": cluster, "batch_size": 1, "tables": [], "sharding_plan": {}}
    assert TablePlan.from_json(json.dumps(saved)).comms == CommsConfig()
