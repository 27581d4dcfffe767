"""Where every table goes, on any cluster: computed, saved, read, printed."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ShardingPlan

from trec_semid.core.errors import PlanError, SemidError
from trec_semid.runtime.ranks import Ranks, broadcast_object
from trec_semid.sharding.comms import CommsConfig
from trec_semid.sharding.constraints import ShardingConfig
from trec_semid.sharding.optimizer import SparseOptimizerConfig
from trec_semid.sharding.placement import PlacedTable, RankLoad, rank_loads
from trec_semid.sharding.plan_json import decode_plan, encode_plan
from trec_semid.sharding.plan_text import describe, describe_changes
from trec_semid.sharding.search import Workload, search
from trec_semid.sharding.tables import table_weights
from trec_semid.sharding.topology import GIB, ClusterConfig


@dataclass(frozen=True)
class TablePlan:
    """The placement of every table on one cluster."""

    cluster: ClusterConfig
    batch_size: int
    """Rows per rank and step that the plan was computed for."""
    tables: tuple[PlacedTable, ...]
    sharding_plan: ShardingPlan
    """What torchrec is given."""
    comms: CommsConfig = field(default_factory=CommsConfig)
    """In which precision rows and their gradients travel in training."""

    def rank_loads(self) -> list[RankLoad]:
        """Return memory and time per rank, rank 0 first."""
        return rank_loads(self.tables, self.cluster.world_size)

    def to_json(self) -> str:
        """Return the plan as JSON text that `from_json` reads back to an equal plan."""
        content = {
            "schema_version": 1,
            "cluster": self.cluster.model_dump(mode="json"),
            "batch_size": self.batch_size,
            "tables": [table.to_json() for table in self.tables],
            "ranks": [load._asdict() for load in self.rank_loads()],
            "comms": self.comms.model_dump(),
            "sharding_plan": encode_plan(self.sharding_plan),
        }
        return json.dumps(content, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str) -> "TablePlan":
        """Read a plan.

        Raises:
            PlanError: the text is not a plan of this version.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            return TablePlan(
                cluster=ClusterConfig.model_validate(content["cluster"]),
                batch_size=content["batch_size"],
                tables=tuple(PlacedTable.from_json(table) for table in content["tables"]),
                sharding_plan=decode_plan(content["sharding_plan"]),
                comms=CommsConfig.model_validate(content.get("comms", {})),  # older plans have none
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"not a saved plan: {error!r}. Make it again: trec-semid plan.") from None

    def as_text(self) -> str:
        """Return the plan as plain text for people."""
        text = describe(self.cluster, self.batch_size, self.tables)
        return text if self.comms.is_exact else f"{text}\nBetween ranks, in training, {self.comms}.\n"

    def changes_since(self, before: "TablePlan") -> str:
        """Return as plain text what differs from another plan, of any cluster."""
        return describe_changes(before, self)


def plan_tables(
    model: nn.Module,
    cluster: ClusterConfig,
    sharding: ShardingConfig,
    *,
    batch_size: int,
    optimizer: SparseOptimizerConfig,
    mean_lengths: Mapping[str, float] | None = None,
    beside: TablePlan | None = None,
) -> TablePlan:
    """Place every table of a model on a cluster; needs neither the cluster nor a process group.

    Args:
        model: the unsharded model; its tables may be on `meta`.
        cluster: the hardware.
        sharding: rules for tables.
        batch_size: rows per rank and step.
        optimizer: of the tables; its state takes memory.
        mean_lengths: average ids per row of a feature; 1 where not given.
        beside: plan of other tables on the same ranks; what its fullest rank holds is taken off every rank.

    Raises:
        ConfigError: a rule names an unknown table or leaves one without a placement.
        PlanError: the tables do not fit.
    """
    if beside:
        loads = beside.rank_loads()
        # The fullest rank's load is taken off all: a cluster has equal devices, and tables must fit on each.
        cluster = cluster.less(max(load.hbm_bytes for load in loads), max(load.ddr_bytes for load in loads))
    with _optimizer_known(model, optimizer):
        try:
            result = search(model, cluster, sharding, Workload(batch_size, optimizer, mean_lengths or {}))
        except PlannerError as error:
            raise PlanError(_does_not_fit(error, model, cluster)) from error
    return TablePlan(cluster, batch_size, result.tables, result.sharding_plan, sharding.comms)


def plan_on_ranks(
    model: nn.Module,
    ranks: Ranks,
    sharding: ShardingConfig,
    *,
    batch_size: int,
    optimizer: SparseOptimizerConfig,
    mean_lengths: Mapping[str, float] | None = None,
    beside: TablePlan | None = None,
) -> TablePlan:
    """Place the tables on the running process group: rank 0 plans, all ranks get its plan or its error.

    torchrec's own `collective_plan` leaves the other ranks waiting when planning fails on rank 0.
    Arguments and errors are those of `plan_tables`.
    """
    outcome: str | SemidError = ""
    if ranks.is_main:
        cluster = ClusterConfig.here(ranks)
        try:
            plan = plan_tables(
                model,
                cluster,
                sharding,
                batch_size=batch_size,
                optimizer=optimizer,
                mean_lengths=mean_lengths,
                beside=beside,
            )
            # Rank 0 reads its own text back as well, so that all ranks hold the very same plan.
            outcome = plan.to_json()
        except SemidError as error:
            outcome = error
    outcome = broadcast_object(outcome)
    if isinstance(outcome, SemidError):
        raise outcome
    return TablePlan.from_json(outcome)


@contextmanager
def _optimizer_known(model: nn.Module, optimizer: SparseOptimizerConfig) -> Iterator[None]:
    # The storage estimator reads this attribute, which otherwise exists only once an optimizer is attached.
    name = "_optimizer_classes"
    fresh = [weight for weight in table_weights(model).values() if not hasattr(weight, name)]
    for weight in fresh:
        setattr(weight, name, [optimizer.torch_class])
    try:
        yield
    finally:
        for weight in fresh:
            delattr(weight, name)


def _does_not_fit(error: PlannerError, model: nn.Module, cluster: ClusterConfig) -> str:
    weights = table_weights(model)
    sizes = {name: weight.numel() * weight.element_size() for name, weight in weights.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    rows, dim = weights[largest].shape
    memory = cluster.hbm_bytes if cluster.device == "cuda" else cluster.ddr_bytes
    kind = "device" if cluster.device == "cuda" else "host"
    return (
        f"{cluster.name}: the tables cannot be placed ({error.error_type.value}). "
        f"All weights take {sum(sizes.values()) / GIB:.2f} GiB, of which the largest table '{largest}' "
        f"({rows:,} x {dim}) {sizes[largest] / GIB:.2f} GiB; each of {cluster.world_size} ranks has "
        f"{memory / GIB:.2f} GiB of {kind} memory for weights, optimizer state and exchanged values. "
        f"Allow row_wise or more kernels for '{largest}', use more devices, or make tables smaller."
    )
