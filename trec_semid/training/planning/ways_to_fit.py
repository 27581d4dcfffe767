"""What would make tables fit a cluster that is too small: one change at a time, each planned again."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from trec_semid.core.errors import ConfigError, PlanError
from trec_semid.sharding.topology import ClusterConfig
from trec_semid.training.ranking.setup import RankConfig
from trec_semid.training.retrieval.setup import RetrieveConfig

ConfigT = TypeVar("ConfigT", RankConfig, RetrieveConfig)
_MOST_TIMES = 64
"""A cluster is tried up to so many times its nodes, a batch down to one in so many."""


class Way(NamedTuple):
    """A change after which the tables fit."""

    change: str
    """As it is written: an override of the config, or a key of the cluster's file."""
    now: str


def ways_to_fit(
    plan: Callable[[ConfigT, ClusterConfig], object], config: ConfigT, cluster: ClusterConfig
) -> list[Way]:
    """Return the smallest change of each kind that makes the tables fit; none where no single one does.

    Kinds: more nodes, narrower tables, a smaller batch, an optimizer with less state, a rule less. Whether
    tables fit need not be monotone in a size; what is returned was planned, one step less was planned too.

    Args:
        plan: places the tables; raises PlanError where they do not fit.
        config: of the model.
        cluster: that it does not fit.
    """

    def fits(changes: dict[str, Any], on: ClusterConfig = cluster) -> bool:
        """Return whether the tables fit with other values at dotted keys, on this or another cluster."""
        try:
            plan(_changed(config, changes), on)
        except (PlanError, ConfigError, ValueError):  # a value that the config refuses is no way either
            return False
        return True

    return [
        *_by_nodes(fits, cluster),
        *_by_width(fits, config),
        *_by_less(fits, config),
        *_by_rule(fits, config),
    ]


def _by_nodes(fits: Callable[..., bool], cluster: ClusterConfig) -> Iterator[Way]:
    def enough(nodes: int) -> bool:
        """Return whether the tables fit on so many nodes."""
        return fits({}, cluster.model_copy(update={"num_nodes": nodes}))

    short, most = cluster.num_nodes, cluster.num_nodes * _MOST_TIMES
    nodes = 2 * short
    while nodes <= most and not enough(nodes):
        short, nodes = nodes, 2 * nodes
    if nodes <= most:
        yield Way(f"num_nodes = {_least(enough, short, nodes)} in the cluster's file", f"{cluster.num_nodes}")


def _by_width(fits: Callable[..., bool], config: RankConfig | RetrieveConfig) -> Iterator[Way]:
    """Yield the widest tables that fit, from halves down: some widths the model refuses, as heads do."""
    now = config.tables.dim

    def narrow(steps: int) -> bool:
        """Return whether tables fit that are so many steps narrower; the kernels take multiples of 4."""
        return fits({"tables.dim": now - 4 * steps})

    wide = 0
    for halves in range(1, now.bit_length()):
        steps = now // 4 - max(now >> halves, 4) // 4
        if steps > wide and narrow(steps):
            yield Way(f"--set tables.dim={now - 4 * _least(narrow, wide, steps)}", f"{now}")
            return
        wide = steps


def _by_less(fits: Callable[..., bool], config: RankConfig | RetrieveConfig) -> Iterator[Way]:
    """Yield a smaller batch, by halves, and the optimizer with one number a row."""
    if isinstance(config, RankConfig):
        now = config.train.batch_size
        halves = (now // 2**power for power in range(1, _MOST_TIMES.bit_length()))
        smaller = next((size for size in halves if size and fits({"train.batch_size": size})), None)
        if smaller:
            yield Way(f"--set train.batch_size={smaller}", f"{now}")
    kind, lighter = config.optimizers.tables.kind, "row_wise_adagrad"
    if kind in ("adagrad", "adam") and fits({"optimizers.tables.kind": lighter}):
        yield Way(f"--set optimizers.tables.kind={lighter}", kind)


def _by_rule(fits: Callable[..., bool], config: RankConfig | RetrieveConfig) -> Iterator[Way]:
    rules = config.sharding.model_dump(mode="json", exclude_unset=True).get("tables", {})
    for name in rules:
        if fits({"sharding.tables": {other: rule for other, rule in rules.items() if other != name}}):
            yield Way(f"without the rule [sharding.tables.{name!r}]", str(rules[name]))


def _least(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return a number in (low, high] that holds where the one below does not: low does not, high does."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _changed(config: ConfigT, changes: dict[str, Any]) -> ConfigT:
    """Return the config, checked anew, with other values at dotted keys."""
    values = config.model_dump(mode="json", exclude_unset=True)
    for key, value in changes.items():
        *path, last = key.split(".")
        at = values
        for name in path:
            at = at.setdefault(name, {})
        at[last] = value
    return type(config).model_validate(values)
