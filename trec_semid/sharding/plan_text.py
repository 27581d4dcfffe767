"""A plan as plain text: one line per table, one per group of equally loaded ranks."""

from collections.abc import Sequence
from typing import Protocol

from trec_semid.sharding.placement import PlacedTable, RankLoad, rank_loads
from trec_semid.sharding.topology import GIB, ClusterConfig


class Placed(Protocol):
    """A plan, as far as it is described."""

    @property
    def cluster(self) -> ClusterConfig:
        """What it is for."""
        ...

    @property
    def tables(self) -> Sequence[PlacedTable]:
        """Where each table lies."""
        ...


def describe(cluster: ClusterConfig, batch_size: int, tables: Sequence[PlacedTable]) -> str:
    """Return what goes where, and what each rank then holds."""
    weights = sum(table.weight_bytes for table in tables)
    head = (
        f"Plan for {cluster.name}: {cluster.num_nodes} nodes x {cluster.devices_per_node} "
        f"{cluster.device} ranks = {cluster.world_size}, {batch_size:,} rows per rank and step.\n"
        f"{len(tables)} tables, {_size(weights)} of weights in all. Memory is the planner's estimate of "
        "weights, optimizer state and exchanged values; time is its estimate as well.\n"
    )
    columns = ["table", "rows x dim", "dtype", "weights", "placement", "kernel", "shards", "largest", "ranks"]
    placed = align([columns, *(_table_line(table) for table in tables)])
    ranks = align([["ranks", "device memory", "host memory", "time/step"], *_rank_lines(cluster, tables)])
    return f"{head}\n{placed}\n\n{ranks}\n"


def describe_changes(before: Placed, after: Placed) -> str:
    """Return what differs between two plans: tables by name, and the fullest and the slowest rank of each."""
    columns = ["table", "before", "after"]
    earlier, later = ({table.name: table for table in each.tables} for each in (before, after))
    changed = [
        [name, *(_placement(tables.get(name)) for tables in (earlier, later))]
        for name in {**earlier, **later}
        if _placement(earlier.get(name)) != _placement(later.get(name))
    ]
    ranks = [[name, *each] for name, *each in zip(_EXTREMES, *map(_extremes, (before, after)), strict=True)]
    same = len({**earlier, **later}) - len(changed)
    parts = [
        f"Beside the plan for {before.cluster.name}: {len(changed)} tables lie otherwise, {same} as before.",
        *([align([columns, *changed])] if changed else []),
        align([["", *columns[1:]], *ranks]),
    ]
    return "\n\n".join(parts) + "\n"


def align(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as a table with aligned columns under a ruled heading."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(row.rstrip() for row in [rows[0], "  ".join("-" * width for width in widths), *rows[1:]])


def in_ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers with runs joined: 0-3, 7."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


_EXTREMES = ("ranks", "device memory, fullest", "host memory, fullest", "time/step, slowest")


def _extremes(plan: Placed) -> tuple[str, ...]:
    loads = rank_loads(plan.tables, plan.cluster.world_size)
    hbm, ddr, time_ms = (max(each) for each in zip(*(load[1:] for load in loads), strict=True))
    return str(len(loads)), _size(hbm), _size(ddr), f"{time_ms:.2f} ms"


def _placement(table: PlacedTable | None) -> str:
    if table is None:
        return "-"
    size = f"{table.rows:,} x {table.dim} {table.dtype}"
    return f"{size}, {table.sharding_type}, {table.kernel}, {len(table.shards)} shards"


def _table_line(table: PlacedTable) -> list[str]:
    rows, dim = max((shard.size for shard in table.shards), key=lambda size: size[0] * size[1])
    return [
        table.name,
        f"{table.rows:,} x {table.dim}",
        table.dtype,
        _size(table.weight_bytes),
        table.sharding_type,
        table.kernel,
        str(len(table.shards)),
        f"{rows:,} x {dim}",
        in_ranges([shard.rank for shard in table.shards]),
    ]


def _rank_lines(cluster: ClusterConfig, tables: Sequence[PlacedTable]) -> list[list[str]]:
    groups: dict[tuple[str, ...], list[int]] = {}
    for load in rank_loads(tables, cluster.world_size):
        groups.setdefault(_load_cells(load, cluster), []).append(load.rank)
    return [[in_ranges(ranks), *cells] for cells, ranks in groups.items()]


def _load_cells(load: RankLoad, cluster: ClusterConfig) -> tuple[str, ...]:
    return (
        f"{_size(load.hbm_bytes)} of {_size(cluster.hbm_bytes)}" if cluster.hbm_bytes else "-",
        f"{_size(load.ddr_bytes)} of {_size(cluster.ddr_bytes)}",
        f"{load.time_ms:.2f} ms",
    )


def _size(num_bytes: int) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 1024**2), ("KiB", 1024)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return str(num_bytes)
