"""torchrec's planner, run so that equal inputs give equal plans in every process."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import GreedyProposer, GridSearchProposer, UniformProposer
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    ParameterConstraints,
    PlannerError,
    Proposer,
    ShardingOption,
    Stats,
    Topology,
)
from torchrec.distributed.types import ModuleSharder, ShardingPlan

from trec_semid.sharding.comms import build_codecs
from trec_semid.sharding.constraints import ShardingConfig, build_constraints
from trec_semid.sharding.optimizer import SparseOptimizerConfig
from trec_semid.sharding.placement import PlacedTable, Shard
from trec_semid.sharding.tables import (
    COLUMN_TYPES,
    EVERY_TYPE,
    Table,
    find_tables,
    table_sharders,
    without_library_warnings,
)
from trec_semid.sharding.topology import ClusterConfig, build_topology

_MOST_SHARDS_TRIED = 2048
"""Combinations times ranks that are tried one by one: about a second."""


class Workload(NamedTuple):
    """What a step asks of the tables."""

    batch_size: int
    """Rows per rank and step."""
    optimizer: SparseOptimizerConfig
    mean_lengths: Mapping[str, float]
    """Average ids per row of a feature; 1 where not given."""


class Found(NamedTuple):
    """The best plan."""

    sharding_plan: ShardingPlan
    tables: tuple[PlacedTable, ...]


def search(model: nn.Module, cluster: ClusterConfig, sharding: ShardingConfig, workload: Workload) -> Found:
    """Return the best plan in device memory, or with host memory where device memory is too small.

    Host memory is always slower, and offering it at once makes the search several times longer.

    Raises:
        ConfigError: a rule does not fit the tables.
        PlannerError: no plan fits.
    """
    tables = find_tables(model)
    for offloads in (False, True):
        constraints = build_constraints(
            sharding,
            tables,
            cluster.device,
            mean_lengths=workload.mean_lengths,
            left_to_rules=_left_to_rules(cluster, workload.optimizer),
            row_shards={"row_wise": cluster.world_size, "table_row_wise": cluster.devices_per_node},
            offloads=offloads,
        )
        try:
            codecs = build_codecs(sharding.comms, workload.batch_size * cluster.world_size)
            sharders = table_sharders(codecs and codecs.registry)
            return _search_once(model, sharders, cluster, constraints, workload.batch_size)
        except PlannerError:
            # On CPU the tables lie in host memory already: a second attempt would have nothing new to offer.
            if offloads or cluster.device == "cpu":
                raise
    raise AssertionError("the second attempt returns or raises")


def _left_to_rules(cluster: ClusterConfig, optimizer: SparseOptimizerConfig) -> set[str]:
    if optimizer.is_replicated_only(cluster.device):
        return {kind for kind in EVERY_TYPE if kind != "data_parallel"}
    # With one rank, splitting or replicating a table only adds work.
    if cluster.world_size == 1:
        return {kind for kind in EVERY_TYPE if kind != "table_wise"}
    columns: set[str] = set(COLUMN_TYPES) if optimizer.is_row_wise else set()
    return columns | {"data_parallel"} if cluster.device == "cpu" else columns


def _search_once(
    model: nn.Module,
    sharders: list[ModuleSharder[Any]],
    cluster: ClusterConfig,
    constraints: dict[str, ParameterConstraints],
    batch_size: int,
) -> Found:
    topology = build_topology(cluster)
    chosen_plan = _KeepBestPlan()
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        enumerator=_SortedEnumerator(topology, batch_size, constraints),
        storage_reservation=FixedPercentageStorageReservation(0.0),  # ClusterConfig took it off already
        proposer=_proposers(cluster.world_size),
        stats=chosen_plan,
        constraints=constraints,
        debug=False,
    )
    with without_library_warnings():
        plan = planner.plan(model, sharders)
    placed = {option.name: option for option in chosen_plan.options}
    return Found(plan, tuple(_placed(placed[table.name], table) for table in find_tables(model)))


def _proposers(world_size: int) -> list[Proposer]:
    # Trying every combination is exact, but takes minutes from a few tables and ranks on.
    exhaustive = GridSearchProposer(max_proposals=_MOST_SHARDS_TRIED // world_size)
    return [exhaustive, GreedyProposer(), GreedyProposer(use_depth=False), UniformProposer()]


class _KeepBestPlan(Stats):
    """Keeps the chosen options, which say what each shard takes; the plan itself does not."""

    def __init__(self) -> None:
        self.options: list[ShardingOption] = []

    def log(self, *args: Any, best_plan: list[ShardingOption], **kwargs: Any) -> None:
        """Keep the chosen options; the planner calls it once it has chosen."""
        self.options = best_plan


class _SortedEnumerator(EmbeddingEnumerator):
    """Puts options into one order: the library's own follows the hash of strings, new in each process."""

    def __init__(
        self, topology: Topology, batch_size: int, constraints: dict[str, ParameterConstraints]
    ) -> None:
        super().__init__(topology, batch_size, constraints)
        for estimator in self._estimators:
            if config := getattr(estimator, "config", None):
                _tell_marked(config)

    def enumerate(self, module: nn.Module, sharders: list[ModuleSharder[nn.Module]]) -> list[ShardingOption]:
        """Return every way to place every table, by table, sharding type and kernel."""
        return sorted(super().enumerate(module, sharders), key=_order)


def _tell_marked(config: Any) -> None:
    """Let a config list what is marked in it alone: the library looks through its names for each shard anew.

    That was half of a search.
    """
    marked = [name for name in dir(config) if getattr(getattr(config, name), "__dict__", None)]
    own = type(config)
    config.__class__ = type(own.__name__, (own,), {"__dir__": lambda _: marked})


def _order(option: ShardingOption) -> tuple[str, int, str]:
    return option.fqn, EVERY_TYPE.index(option.sharding_type), option.compute_kernel


def _placed(option: ShardingOption, table: Table) -> PlacedTable:
    weight: torch.Tensor = option.tensor
    return PlacedTable(
        name=table.name,
        rows=table.rows,
        dim=table.dim,
        dtype=str(weight.dtype).removeprefix("torch."),
        weight_bytes=weight.numel() * weight.element_size(),
        sharding_type=option.sharding_type,
        kernel=option.compute_kernel,
        shards=tuple(_shard(shard) for shard in option.shards),
    )


def _shard(shard: Any) -> Shard:
    return Shard(
        rank=shard.rank,
        offset=(shard.offset[0], shard.offset[1]),
        size=(shard.size[0], shard.size[1]),
        hbm_bytes=shard.storage.hbm,
        ddr_bytes=shard.storage.ddr,
        time_ms=shard.perf.total,
    )
