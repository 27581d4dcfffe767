import json
from typing import Any

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from tests.sharding.models import TinyModel
from trec_semid.core.errors import ConfigError, PlanError
from trec_semid.sharding import search
from trec_semid.sharding.constraints import ShardingConfig
from trec_semid.sharding.optimizer import SparseOptimizerConfig
from trec_semid.sharding.placement import PlacedTable
from trec_semid.sharding.plan import TablePlan, plan_tables
from trec_semid.sharding.plan_text import align, in_ranges
from trec_semid.sharding.tables import table_weights
from trec_semid.sharding.topology import GIB, ClusterConfig

ROW_WISE = SparseOptimizerConfig()


def gpus(num_nodes: int = 1, hbm_gib: float = 80, ddr_gib: float = 2048) -> ClusterConfig:
    return ClusterConfig(
        name="test",
        num_nodes=num_nodes,
        devices_per_node=8,
        hbm_gib=hbm_gib,
        ddr_gib=ddr_gib,
        inter_node_gb_s=50,
    )


def model_of(**rows: int) -> nn.Module:
    tables = [
        EmbeddingBagConfig(
            name=f"t_{name}", num_embeddings=count, embedding_dim=64, feature_names=[name, f"{name}_history"]
        )
        for name, count in rows.items()
    ]
    model = nn.Module()
    model.bags = EmbeddingBagCollection(tables, device=torch.device("meta"))
    return model


def plan(
    model: nn.Module, cluster: ClusterConfig, rules: dict[str, Any] | None = None, **changes: Any
) -> TablePlan:
    settings: dict[str, Any] = {"batch_size": 1024, "optimizer": ROW_WISE, **changes}
    return plan_tables(model, cluster, ShardingConfig.model_validate({"tables": rules or {}}), **settings)


def covered(table: PlacedTable) -> int:
    return sum(shard.size[0] * shard.size[1] for shard in table.shards)


@pytest.fixture(scope="module")
def large() -> TablePlan:
    return plan(model_of(user=30_000_000, item=40_000_000, code=3001), gpus(2))


def test_shards_cover_each_table_once(large: TablePlan):
    for table in large.tables:
        copies = len(table.shards) if table.sharding_type == "data_parallel" else 1
        assert covered(table) == copies * table.rows * table.dim


def test_no_rank_holds_more_than_it_has_and_shards_hold_at_least_their_weights(large: TablePlan):
    loads = large.rank_loads()
    assert [load.rank for load in loads] == list(range(16))
    assert max(load.hbm_bytes for load in loads) <= large.cluster.hbm_bytes
    for shard in (shard for table in large.tables for shard in table.shards):
        assert shard.hbm_bytes >= shard.size[0] * shard.size[1] * 4


def test_rank_loads_are_the_sums_of_their_shards(large: TablePlan):
    for load in large.rank_loads():
        shards = [shard for table in large.tables for shard in table.shards if shard.rank == load.rank]
        assert load.hbm_bytes == sum(shard.hbm_bytes for shard in shards)
        assert load.time_ms == pytest.approx(sum(shard.time_ms for shard in shards))


def test_a_plan_survives_json(large: TablePlan):
    again = TablePlan.from_json(large.to_json())
    assert again == large
    assert again.sharding_plan.plan["bags"]["t_item"] == large.sharding_plan.plan["bags"]["t_item"]
    assert again.to_json() == large.to_json()


def test_planning_twice_gives_the_same_plan(large: TablePlan):
    assert plan(model_of(user=30_000_000, item=40_000_000, code=3001), gpus(2)).to_json() == large.to_json()


def test_the_plan_is_that_of_torchrec_looking_through_all_names(
    large: TablePlan, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(search, "_tell_marked", lambda _: None)
    whole = plan(model_of(user=30_000_000, item=40_000_000, code=3001), gpus(2))
    assert whole.to_json() == large.to_json()


def test_planning_leaves_the_model_as_it_was():
    model = TinyModel()
    plan(model, gpus())
    assert not any(hasattr(weight, "_optimizer_classes") for weight in table_weights(model).values())


def test_the_optimizers_state_counts():
    rules = {"t_item": {"sharding_types": ["table_wise"]}}
    sizes = {}
    for kind in ("sgd", "row_wise_adagrad", "adagrad", "adam"):
        made = plan(model_of(item=1_000_000), gpus(), rules, optimizer=SparseOptimizerConfig(kind=kind))
        sizes[kind] = made.tables[0].shards[0].hbm_bytes
    assert sizes["row_wise_adagrad"] - sizes["sgd"] == 1_000_000 * 4
    assert sizes["adagrad"] - sizes["sgd"] == 1_000_000 * 64 * 4
    assert sizes["adam"] - sizes["sgd"] == 2 * 1_000_000 * 64 * 4


def test_longer_inputs_take_more_memory_and_time():
    rules = {"t_item": {"sharding_types": ["table_wise"]}}
    short = plan(model_of(item=1000), gpus(), rules).rank_loads()
    long = plan(model_of(item=1000), gpus(), rules, mean_lengths={"item_history": 200.0}).rank_loads()
    assert max(load.hbm_bytes for load in long) > 3 * max(load.hbm_bytes for load in short)
    assert max(load.time_ms for load in long) > 5 * max(load.time_ms for load in short)


def test_rules_are_followed():
    made = plan(
        model_of(user=5000, item=8000),
        gpus(),
        {
            "t_item": {"sharding_types": ["row_wise"]},
            "t_u*": {"kernels": ["fused_uvm"], "sharding_types": ["table_wise"]},
        },
    )
    user, item = made.tables
    assert (item.sharding_type, len(item.shards), item.shards[3].size) == ("row_wise", 8, (1000, 64))
    assert (user.sharding_type, user.kernel) == ("table_wise", "fused_uvm")
    assert user.shards[0].ddr_bytes >= 5000 * 64 * 4


def test_tables_too_large_for_devices_go_to_host_memory():
    made = plan(model_of(item=40_000_000), gpus(hbm_gib=1, ddr_gib=256))
    assert made.tables[0].kernel.startswith("fused_uvm")
    assert max(load.ddr_bytes for load in made.rank_loads()) > GIB / 2


def test_row_wise_state_is_not_split_by_columns_unless_asked():
    wide = nn.Module()
    wide.bags = EmbeddingBagCollection(
        [EmbeddingBagConfig(name="t_item", num_embeddings=1000, embedding_dim=512, feature_names=["item"])],
        device=torch.device("meta"),
    )
    assert "column" not in plan(wide, gpus()).tables[0].sharding_type
    asked = plan(wide, gpus(), {"t_item": {"sharding_types": ["column_wise"], "min_column_dim": 128}})
    assert asked.tables[0].sharding_type == "column_wise"
    assert {shard.size for shard in asked.tables[0].shards} == {(1000, 128)}


def test_on_cpu_nothing_is_replicated_and_on_one_rank_nothing_split_without_a_rule():
    model = model_of(user=5000, item=8000, code=10)
    one, two = (
        plan(model, ClusterConfig(device="cpu", devices_per_node=ranks, ddr_gib=8)).tables for ranks in (1, 2)
    )
    assert {table.sharding_type for table in one} == {"table_wise"}
    assert "data_parallel" not in {table.sharding_type for table in two}
    asked = plan(
        model,
        ClusterConfig(device="cpu", ddr_gib=8),
        {"t_user": {"sharding_types": ["data_parallel"]}, "t_item": {"sharding_types": ["row_wise"]}},
    )
    assert [table.sharding_type for table in asked.tables] == ["data_parallel", "row_wise", "table_wise"]


def test_tables_that_fit_nowhere_are_refused_with_sizes():
    with pytest.raises(PlanError) as error:
        plan(model_of(user=1000, item=400_000_000), gpus(hbm_gib=1, ddr_gib=8))
    text = str(error.value)
    assert "test: the tables cannot be placed (insufficient_storage)" in text
    assert "the largest table 't_item' (400,000,000 x 64) 95.37 GiB" in text
    assert "each of 8 ranks has 0.85 GiB of device memory" in text


def test_one_table_too_large_for_its_only_allowed_place_is_refused():
    rules = {"t_item": {"sharding_types": ["table_wise"], "kernels": ["fused"]}}
    with pytest.raises(PlanError, match=r"strict_constraints.*Allow row_wise or more kernels for 't_item'"):
        plan(model_of(item=40_000_000), gpus(hbm_gib=8), rules)


def test_a_rule_for_an_unknown_table_is_refused():
    with pytest.raises(ConfigError, match="no table is called 't_itme'; did you mean 't_item'"):
        plan(model_of(item=10), gpus(), {"t_itme": {}})


@pytest.mark.parametrize("text", ["", "{}", '{"cluster": {"ddr_gib": 1}}', "[1]"])
def test_text_that_is_no_plan_is_refused(text: str):
    with pytest.raises(PlanError, match="not a saved plan"):
        TablePlan.from_json(text)


def test_the_text_names_every_table_and_groups_equal_ranks(large: TablePlan):
    text = large.as_text()
    lines = text.splitlines()
    assert "Plan for test: 2 nodes x 8 cuda ranks = 16, 1,024 rows per rank and step." in lines
    for table in large.tables:
        line = next(line for line in lines if line.startswith(table.name + " "))
        assert f"{table.rows:,} x 64" in line
        assert table.sharding_type in line
    assert sum("of 68.00 GiB" in line for line in lines) <= 16
    assert "\x1b" not in text


def test_ranks_are_written_as_ranges():
    assert in_ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert in_ranges([3]) == "3"


def test_columns_are_aligned():
    assert align([["a", "bb"], ["ccc", "d"]]) == "a    bb\n---  --\nccc  d"


def test_json_names_its_version_and_every_rank(large: TablePlan):
    content = json.loads(large.to_json())
    assert content["schema_version"] == 1
    assert [rank["rank"] for rank in content["ranks"]] == list(range(16))
    assert content["sharding_plan"]["bags"]["t_item"]["sharding_spec"][0]["placement"].startswith("rank:")
