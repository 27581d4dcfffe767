"""What a config may say about where tables go: rules by table name or pattern."""

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import Field, PositiveInt, field_validator
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import CacheParams

from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError
from trec_semid.core.explain import did_you_mean
from trec_semid.core.identity import MayChange
from trec_semid.sharding.comms import CommsConfig
from trec_semid.sharding.tables import (
    EVERY_TYPE,
    KERNELS,
    REPLICATED_KERNEL,
    Table,
    offered_types,
)


class TableRule(Config):
    """What the planner may do with the tables that a rule names; what is left out is free."""

    sharding_types: list[str] | None = None
    """Any of data_parallel, table_wise, column_wise, row_wise, table_row_wise, table_column_wise."""
    kernels: list[str] | None = None
    """Where weights of a sharded table lie: fused (device memory), fused_uvm (host memory),
    fused_uvm_caching (host memory behind a device cache). Replicated tables have a kernel of their own."""
    min_column_dim: PositiveInt | None = None
    """Narrowest column shard the planner may cut; torchrec's default keeps tables up to 128 whole."""
    cache_load_factor: float | None = Field(default=None, gt=0, le=1)
    """Share of the rows that fused_uvm_caching keeps in device memory."""

    @field_validator("sharding_types", "kernels")
    @classmethod
    def _known(cls, names: list[str] | None, info: Any) -> list[str] | None:
        known = EVERY_TYPE if info.field_name == "sharding_types" else KERNELS["cuda"]
        for name in names or []:
            if name not in known:
                raise ValueError(f"unknown '{name}'{did_you_mean(name, known)}")
        if names == []:
            raise ValueError("an empty list leaves nothing to choose; leave the key out instead")
        return names


class ShardingConfig(Config):
    """Rules for placing tables; without one the planner chooses.

    Some choices are left to rules. Column-wise placement under row-wise Adagrad: shards of a row would each
    keep a state of their own, which is another optimizer. Host memory: only where device memory is too
    small. Replicas on CPU: their dense update costs as much as the whole table in every step. On a single
    rank, whatever splits tables.

    A table too small to give every rank a row is not split by rows, whatever a rule says, but laid
    table-wise: the CPU kernel of a shard without rows reads past the end of its own bookkeeping
    (fbgemm 1.8, seen as a random 'more than 2B rows' in backward).
    """

    tables: Annotated[dict[str, TableRule], MayChange()] = {}
    """Table name or pattern (`t_item*`) to rule. An exact name beats patterns, a longer pattern beats a
    shorter one."""
    comms: CommsConfig = CommsConfig()

    def part(self, prefix: str, *, is_inside: bool) -> "ShardingConfig":
        """Return the rules whose name or pattern starts with a prefix, or those whose does not.

        Those inside are of frozen content, which travels as it is.
        """
        rules = {name: rule for name, rule in self.tables.items() if name.startswith(prefix) == is_inside}
        return ShardingConfig(tables=rules, comms=CommsConfig() if is_inside else self.comms)


def build_constraints(
    sharding: ShardingConfig,
    tables: Sequence[Table],
    device: str,
    *,
    mean_lengths: Mapping[str, float],
    left_to_rules: Collection[str],
    row_shards: Mapping[str, int],
    offloads: bool,
) -> dict[str, ParameterConstraints]:
    """Return the planner's constraints, one entry per table.

    Args:
        sharding: the rules.
        tables: the tables of the model.
        device: "cpu" or "cuda".
        mean_lengths: average number of ids a row has in a feature; 1 where not given.
        left_to_rules: sharding types that only a rule may choose.
        row_shards: sharding types that split rows, and into how many shards.
        offloads: whether tables without a rule may lie in host memory.

    Raises:
        ConfigError: a rule names no table, or leaves a table without any placement on this device.
    """
    _refuse_unmatched(sharding, [table.name for table in tables])
    free = _Choice(
        [kind for kind in EVERY_TYPE if kind not in left_to_rules],
        list(KERNELS[device] if offloads else KERNELS[device][:1]),
    )
    constraints: dict[str, ParameterConstraints] = {}
    for table in tables:
        rule = _rule_of(table.name, sharding)
        choice = _filled(_choice(table, rule, device, free), table, row_shards)
        constraints[table.name] = ParameterConstraints(
            sharding_types=choice.kinds,
            # Always offered: it goes with data_parallel alone, so it opens no other choice.
            compute_kernels=[*choice.kernels, REPLICATED_KERNEL],
            min_partition=rule.min_column_dim,
            pooling_factors=[mean_lengths.get(feature, 1.0) for feature in table.features],
            cache_params=CacheParams(load_factor=rule.cache_load_factor) if rule.cache_load_factor else None,
        )
    return constraints


class _Choice(NamedTuple):
    kinds: list[str]
    kernels: list[str]


def _choice(table: Table, rule: TableRule, device: str, free: _Choice) -> _Choice:
    offered = offered_types(table.pooling, device)
    kernels = [name for name in KERNELS[device] if name in (rule.kernels or free.kernels)]
    kinds = [kind for kind in offered if kind in (rule.sharding_types or free.kinds)]
    # The rule names kernels that this device lacks; a replicated table needs none of them.
    if not kernels:
        kinds = [kind for kind in kinds if kind == "data_parallel"]
    if not kinds:
        raise ConfigError(
            f"sharding: nothing is left for table '{table.name}' ({table.pooling}) on {device} "
            f"(got sharding_types {rule.sharding_types or 'any'} and kernels {rule.kernels or 'any'}). "
            f"Allow one of: {', '.join(offered)}; with kernels: {', '.join(KERNELS[device])}."
        )
    return _Choice(kinds, kernels)


def _filled(choice: _Choice, table: Table, row_shards: Mapping[str, int]) -> _Choice:
    """Leave out what would give some rank no row of the table."""
    kinds = [kind for kind in choice.kinds if _has_rows_for_all(table.rows, row_shards.get(kind, 1))]
    return choice._replace(kinds=kinds or ["table_wise"])


def _has_rows_for_all(rows: int, shards: int) -> bool:
    rows_a_shard = -(-rows // shards)  # as torchrec cuts: equal blocks, what is left comes last
    return -(-rows // rows_a_shard) == shards


def _rule_of(name: str, sharding: ShardingConfig) -> TableRule:
    if name in sharding.tables:
        return sharding.tables[name]
    matching = [pattern for pattern in sharding.tables if fnmatch.fnmatchcase(name, pattern)]
    return sharding.tables[max(matching, key=len)] if matching else TableRule()


def _refuse_unmatched(sharding: ShardingConfig, names: Sequence[str]) -> None:
    for pattern in sharding.tables:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            hint = did_you_mean(pattern, names) or f" The tables are: {', '.join(names)}."
            raise ConfigError(f"sharding.tables: no table is called '{pattern}'{hint}")
