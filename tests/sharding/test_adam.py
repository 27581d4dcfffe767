"""Adam on tables: on CPU for replicated ones, where it is what torch's own does to one whole table."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.ranks import run_ranks
from trec_semid.core.errors import PlanError
from trec_semid.embeddings.collection import PooledTables, keyed_jagged
from trec_semid.embeddings.tables import TablesConfig, TableSpec, initial_rows
from trec_semid.runtime.ranks import process_group
from trec_semid.sharding.apply import replicated_table_optimizer, shard_model
from trec_semid.sharding.constraints import ShardingConfig
from trec_semid.sharding.initialise import initialise_tables
from trec_semid.sharding.optimizer import SparseOptimizerConfig
from trec_semid.sharding.plan import plan_on_ranks
from trec_semid.sharding.tables import find_tables

pytestmark = pytest.mark.ranks
ROWS, DIM, STEPS = 30, 4, 5
ADAM = SparseOptimizerConfig(kind="adam", learning_rate=0.05)


def ids_of(step: int) -> torch.Tensor:
    return torch.randint(ROWS, (8,), generator=torch.Generator().manual_seed(step))


class Squares(nn.Module):
    """A loss that depends on each id's row, and one dense weight."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = PooledTables(
            [TableSpec("t_item", ROWS, ("item",))],
            TablesConfig(dim=DIM, pooling="sum"),
            ["item"],
            device="meta",
        )
        self.weight = nn.Parameter(torch.ones(DIM))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.tables(keyed_jagged(["item"], ids, torch.ones(len(ids), dtype=torch.int32)))
        return ((rows * self.weight - 1) ** 2).mean()


def train(rules: dict[str, Any]) -> dict[str, Any]:
    with process_group() as ranks:
        model, sharding = Squares(), ShardingConfig.model_validate({"tables": rules})
        plan = plan_on_ranks(model, ranks, sharding, batch_size=8, optimizer=ADAM)
        placements = [table.sharding_type for table in plan.tables]
        try:
            sharded = shard_model(model, plan, ranks, ADAM)
        except PlanError as error:
            return {"error": str(error)}
        initialise_tables(sharded, std=0.3, seed=1)
        optimizer = replicated_table_optimizer(sharded, ADAM)
        assert optimizer is not None
        for step in range(STEPS):
            optimizer.zero_grad()
            sharded(ids_of(step)[ranks.rank :: ranks.world_size]).backward()
            optimizer.step()
        key = find_tables(sharded)[0].key
        return {"placements": placements, "rows": sharded.state_dict()[key].detach().numpy().copy()}


def both(rules: dict[str, Any]) -> list[dict[str, Any]]:
    return [train({}), train(rules)]


@pytest.fixture(scope="module")
def trained():
    return run_ranks(both, 2, {"t_item": {"sharding_types": ["row_wise"]}})


def test_replicated_tables_are_trained_as_one_whole_table(trained):
    rows = nn.Parameter(initial_rows("t_item", DIM, 0, ROWS, std=0.3, seed=1))
    optimizer = torch.optim.Adam([rows], lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        ((rows[ids_of(step)] - 1) ** 2).mean().backward()
        optimizer.step()
    for found, _ in trained:
        assert found["placements"] == ["data_parallel"]
        torch.testing.assert_close(torch.from_numpy(found["rows"]), rows.detach(), atol=1e-6, rtol=1e-5)


def test_other_placements_on_cpu_are_refused_by_name(trained):
    for _, refused in trained:
        assert "'t_item' is placed otherwise" in refused["error"]
