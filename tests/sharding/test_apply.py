from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional
from torchrec.distributed.comm_ops import get_gradient_division, set_gradient_division

from tests.ranks import run_ranks
from tests.sharding.models import (
    BAGS,
    DIM,
    ROWS,
    STEPS,
    TinyModel,
    global_batch,
    my_part,
    train_by_hand,
)
from trec_semid.core.errors import ConfigError, PlanError
from trec_semid.runtime.ranks import Ranks, process_group
from trec_semid.sharding.apply import (
    dense_parameters,
    replicated_table_optimizer,
    replicated_tables,
    shard_model,
)
from trec_semid.sharding.constraints import ShardingConfig
from trec_semid.sharding.initialise import initialise_tables
from trec_semid.sharding.optimizer import SparseOptimizerConfig
from trec_semid.sharding.plan import plan_on_ranks, plan_tables
from trec_semid.sharding.tables import find_tables, table_shards
from trec_semid.sharding.topology import ClusterConfig

STD, SEED = 0.3, 5


class Case(NamedTuple):
    bags: str
    codes: str
    optimizer: str = "row_wise_adagrad"


CASES = {
    "row_wise": Case("row_wise", "row_wise"),
    "table_wise": Case("table_wise", "table_wise"),
    "table_row_wise": Case("table_row_wise", "row_wise"),
    "column_wise, adagrad": Case("column_wise", "column_wise", "adagrad"),
    "table_column_wise, sgd": Case("table_column_wise", "column_wise", "sgd"),
    "data_parallel": Case("data_parallel", "table_wise"),
    "data_parallel, adagrad": Case("data_parallel", "row_wise", "adagrad"),
}
FEWER = {name: CASES[name] for name in ("row_wise", "table_wise", "column_wise, adagrad", "data_parallel")}


def sparse_optimizer(kind: Any) -> SparseOptimizerConfig:
    return SparseOptimizerConfig(kind=kind, learning_rate=0.1)


def rules(case: Case) -> ShardingConfig:
    rule = {"min_column_dim": 4}
    return ShardingConfig.model_validate(
        {
            "tables": {
                "t_[ui]*": {"sharding_types": [case.bags], **rule},
                "t_code": {"sharding_types": [case.codes], **rule},
            }
        }
    )


def train(ranks: Ranks, case: Case) -> dict[str, Any]:
    optimizer = sparse_optimizer(case.optimizer)
    model = TinyModel()
    plan = plan_on_ranks(model, ranks, rules(case), batch_size=5, optimizer=optimizer)
    set_gradient_division(False)  # what another library may have left behind
    sharded = shard_model(model, plan, ranks, optimizer)
    initialise_tables(sharded, std=STD, seed=SEED)
    dense = torch.optim.SGD(list(dense_parameters(sharded).values()), lr=0.5)
    replicas = replicated_table_optimizer(sharded, optimizer)
    losses: list[float] = []
    for step in range(STEPS):
        batch = global_batch(step)
        mine, weights = my_part(batch, ranks.rank, ranks.world_size)
        logits = sharded(mine.keyed_jagged(BAGS), mine.keyed_jagged(("code",)))
        total = functional.binary_cross_entropy_with_logits(logits, mine.labels, weights, reduction="sum")
        loss = total * ranks.world_size / len(batch.labels)
        sharded.zero_grad()
        loss.backward()
        dense.step()
        if replicas:
            replicas.step()
        whole = loss.detach().clone()
        dist.all_reduce(whole)
        losses.append(whole.item() / ranks.world_size)
    weights = sharded.state_dict()
    tables = {
        table.name: [
            (row, column, part.numpy().copy()) for row, column, part in table_shards(weights[table.key])
        ]
        for table in find_tables(sharded)
    }
    return {
        "losses": losses,
        "tables": tables,
        "dense": torch.cat([p.detach().flatten() for p in dense_parameters(sharded).values()]).numpy().copy(),
        "dense_names": list(dense_parameters(sharded)),
        "replicated": list(replicated_tables(sharded)),
        "placements": {table.name: table.sharding_type for table in plan.tables},
        "gradient_division": get_gradient_division(),
    }


def error_of(fn: Any, *args: Any, **kwargs: Any) -> tuple[str, str]:
    try:
        fn(*args, **kwargs)
    except (ConfigError, PlanError) as error:
        return type(error).__name__, str(error)
    return "", ""


def everything(cases: dict[str, Case]) -> dict[str, Any]:
    with process_group() as ranks:
        facts: dict[str, Any] = {name: train(ranks, case) for name, case in cases.items()}
        cluster = ClusterConfig(num_nodes=2, devices_per_node=8, hbm_gib=80, ddr_gib=1024)
        own = plan_tables(
            TinyModel(), cluster, ShardingConfig(), batch_size=64, optimizer=sparse_optimizer("adagrad")
        )
        wrong = ShardingConfig.model_validate({"tables": {"t_itm": {}}})
        optimizer = sparse_optimizer("sgd")
        facts["own plan"] = own.to_json()
        facts["wrong rule"] = error_of(
            plan_on_ranks, TinyModel(), ranks, wrong, batch_size=5, optimizer=optimizer
        )
        facts["wrong world"] = error_of(shard_model, TinyModel(), own, ranks, optimizer)
        return facts


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    return run_ranks(everything, 2, CASES)


@pytest.fixture(scope="module")
def four_ranks() -> list[dict[str, Any]]:
    return run_ranks(everything, 4, FEWER)


def whole_table(ranks: list[dict[str, Any]], case: str, name: str) -> np.ndarray:
    table = np.full((ROWS[name], DIM), np.nan, np.float32)
    for facts in ranks:
        for row, column, part in facts[case]["tables"][name]:
            table[row : row + part.shape[0], column : column + part.shape[1]] = part
    return table


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("world", "case"), [("two_ranks", case) for case in CASES] + [("four_ranks", case) for case in FEWER]
)
def test_sharded_training_equals_training_written_out_by_hand(
    case: str, world: str, request: pytest.FixtureRequest
):
    ranks: list[dict[str, Any]] = request.getfixturevalue(world)
    wanted = train_by_hand(sparse_optimizer(CASES[case].optimizer), std=STD, seed=SEED)
    for facts in ranks:
        np.testing.assert_allclose(facts[case]["losses"], wanted.losses, atol=1e-6, rtol=0)
        np.testing.assert_allclose(facts[case]["dense"], wanted.dense.numpy(), atol=1e-6, rtol=0)
    for name in ROWS:
        table = whole_table(ranks, case, name)
        np.testing.assert_allclose(table, wanted.tables[name].numpy(), atol=1e-6, rtol=0)


@pytest.mark.ranks
@pytest.mark.parametrize("case", list(CASES))
def test_tables_lie_where_their_rule_says(case: str, two_ranks: list[dict[str, Any]]):
    placements = two_ranks[0][case]["placements"]
    assert placements == {"t_user": CASES[case].bags, "t_item": CASES[case].bags, "t_code": CASES[case].codes}


@pytest.mark.ranks
def test_column_wise_tables_are_really_split(two_ranks: list[dict[str, Any]]):
    for facts in two_ranks:
        parts = facts["column_wise, adagrad"]["tables"]["t_user"]
        assert parts
        assert all(part.shape[0] == 37 and part.shape[1] < DIM for _, _, part in parts)


@pytest.mark.ranks
def test_replicated_tables_are_named_and_dense_parameters_hold_no_table(two_ranks: list[dict[str, Any]]):
    for case, facts in ((case, two_ranks[0][case]) for case in CASES):
        bags = ["bags.embedding_bags.t_user.weight", "bags.embedding_bags.t_item.weight"]
        assert facts["replicated"] == (bags if CASES[case].bags == "data_parallel" else [])
        assert facts["dense_names"] == ["out.weight", "out.bias"]
        assert facts["gradient_division"] is True


@pytest.mark.ranks
def test_every_process_makes_the_same_plan_though_strings_hash_differently(four_ranks: list[dict[str, Any]]):
    assert len({facts["own plan"] for facts in four_ranks}) == 1


@pytest.mark.ranks
def test_a_planning_error_reaches_every_rank(two_ranks: list[dict[str, Any]]):
    for facts in two_ranks:
        assert facts["wrong rule"] == (
            "ConfigError",
            "sharding.tables: no table is called 't_itm'; did you mean 't_item'?",
        )


@pytest.mark.ranks
def test_a_plan_for_another_number_of_ranks_is_refused(two_ranks: list[dict[str, Any]]):
    kind, text = two_ranks[1]["wrong world"]
    assert kind == "PlanError"
    assert "the plan is for 16 ranks and 2 are running" in text


def test_the_oracle_moves_tables_far_beyond_the_tolerance():
    trained = train_by_hand(sparse_optimizer("row_wise_adagrad"), std=STD, seed=SEED)
    start = train_by_hand(sparse_optimizer("row_wise_adagrad"), std=STD, seed=SEED, steps=0)
    assert (trained.tables["t_user"] - start.tables["t_user"]).abs().max() > 0.05
