from typing import Any

import pytest
from pydantic import ValidationError

from tests.sharding.models import TinyModel
from trec_semid.core.errors import ConfigError
from trec_semid.sharding.constraints import ShardingConfig, build_constraints
from trec_semid.sharding.tables import find_tables

TABLES = find_tables(TinyModel())


def build(rules: dict[str, Any], device: str = "cuda", **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "mean_lengths": {},
        "left_to_rules": set(),
        "row_shards": {},
        "offloads": True,
        **options,
    }
    return build_constraints(ShardingConfig.model_validate({"tables": rules}), TABLES, device, **settings)


def test_every_table_has_a_constraint_even_without_rules():
    constraints = build({})
    assert list(constraints) == ["t_user", "t_item", "t_code"]
    assert constraints["t_user"].sharding_types == [
        "data_parallel",
        "table_wise",
        "row_wise",
        "table_row_wise",
        "column_wise",
        "table_column_wise",
    ]
    assert constraints["t_user"].compute_kernels == ["fused", "fused_uvm", "fused_uvm_caching", "dense"]


def test_an_exact_name_beats_patterns_and_a_longer_pattern_a_shorter_one():
    rules = {
        "t_*": {"sharding_types": ["row_wise"]},
        "t_item": {"sharding_types": ["table_wise"]},
        "t_co*": {"sharding_types": ["column_wise"]},
    }
    kinds = {name: constraint.sharding_types for name, constraint in build(rules).items()}
    assert kinds == {"t_user": ["row_wise"], "t_item": ["table_wise"], "t_code": ["column_wise"]}


def test_kernels_cache_and_column_width_reach_the_planner():
    rule = {"kernels": ["fused_uvm_caching"], "cache_load_factor": 0.1, "min_column_dim": 32}
    constraint = build({"t_item": rule})["t_item"]
    assert constraint.compute_kernels == ["fused_uvm_caching", "dense"]
    assert constraint.cache_params.load_factor == 0.1
    assert constraint.min_partition == 32


def test_mean_lengths_follow_a_tables_features():
    constraints = build({}, mean_lengths={"history": 50.0})
    assert constraints["t_item"].pooling_factors == [1.0, 50.0]
    assert constraints["t_user"].pooling_factors == [1.0]


def test_columns_are_split_and_host_memory_used_only_where_allowed():
    constraint = build({}, left_to_rules={"column_wise", "table_column_wise"}, offloads=False)["t_user"]
    assert constraint.sharding_types == ["data_parallel", "table_wise", "row_wise", "table_row_wise"]
    assert constraint.compute_kernels == ["fused", "dense"]


def test_a_rule_may_ask_for_what_is_otherwise_left_out():
    rule = {"sharding_types": ["column_wise"], "kernels": ["fused_uvm"]}
    constraint = build({"t_user": rule}, left_to_rules={"column_wise", "table_column_wise"}, offloads=False)[
        "t_user"
    ]
    assert (constraint.sharding_types, constraint.compute_kernels) == (
        ["column_wise"],
        ["fused_uvm", "dense"],
    )


def test_on_cpu_tables_are_replicated_only_by_a_rule_and_sequence_tables_never():
    constraints = build({}, device="cpu", left_to_rules={"data_parallel"})
    assert all("data_parallel" not in constraint.sharding_types for constraint in constraints.values())
    assert "row_wise" in constraints["t_user"].sharding_types
    assert constraints["t_user"].compute_kernels == ["fused", "dense"]
    asked = build(
        {"t_user": {"sharding_types": ["data_parallel"]}}, device="cpu", left_to_rules={"data_parallel"}
    )
    assert asked["t_user"].sharding_types == ["data_parallel"]
    with pytest.raises(ConfigError, match=r"nothing is left for table 't_code' \(sequence\) on cpu"):
        build({"t_code": {"sharding_types": ["data_parallel"]}}, device="cpu")


@pytest.mark.parametrize("name", ["t_itm", "t_x*"])
def test_a_rule_that_names_no_table_is_refused(name: str):
    hint = "did you mean 't_item'" if name == "t_itm" else "The tables are: t_user, t_item, t_code"
    with pytest.raises(ConfigError, match=f"no table is called .*{hint}"):
        build({name: {}})


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"sharding_types": ["row_wize"]}, "unknown 'row_wize'; did you mean 'row_wise'?"),
        ({"sharding_types": ["grid_shard"]}, "unknown 'grid_shard'"),
        ({"kernels": ["fussed"]}, "unknown 'fussed'; did you mean 'fused'?"),
        ({"kernels": []}, "an empty list leaves nothing to choose"),
        ({"cache_load_factor": 1.5}, "less than or equal to 1"),
    ],
)
def test_wrong_values_of_a_rule_are_refused(rule: dict[str, Any], text: str):
    with pytest.raises(ValidationError) as error:
        ShardingConfig.model_validate({"tables": {"t_item": rule}})
    assert text in str(error.value)


def test_kernels_of_another_device_leave_nothing():
    with pytest.raises(ConfigError, match="with kernels: fused"):
        build({"t_item": {"kernels": ["fused_uvm"]}}, device="cpu", left_to_rules={"data_parallel"})


@pytest.mark.parametrize(("shards", "is_split"), [(2, True), (4, True), (7, False), (11, True), (8, False)])
def test_a_table_that_cannot_give_every_rank_a_row_is_not_split_by_rows(shards: int, is_split: bool):
    # t_code has 11 rows: 7 shards of 2 rows would leave the seventh empty, 8 the last two.
    rules = {"t_*": {"sharding_types": ["row_wise"]}}
    constraints = build(rules, row_shards={"row_wise": shards, "table_row_wise": shards})
    assert constraints["t_code"].sharding_types == (["row_wise"] if is_split else ["table_wise"])
    assert constraints["t_item"].sharding_types == ["row_wise"]
