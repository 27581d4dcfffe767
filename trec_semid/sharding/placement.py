"""Where tables lie: shards, tables, and what they add up to on each rank."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Shard(NamedTuple):
    """One part of a table on one rank, with what the planner expects it to take."""

    rank: int
    offset: tuple[int, int]
    """First row and column."""
    size: tuple[int, int]
    """Rows and columns."""
    hbm_bytes: int
    """Device memory for weights, optimizer state and exchanged values."""
    ddr_bytes: int
    """Host memory for the same."""
    time_ms: float
    """Estimated forward and backward time of one step [ms]."""


class PlacedTable(NamedTuple):
    """One table with its placement."""

    name: str
    rows: int
    dim: int
    dtype: str
    weight_bytes: int
    """Weights of the whole table, once."""
    sharding_type: str
    kernel: str
    shards: tuple[Shard, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain JSON values."""
        return {**self._asdict(), "shards": [shard._asdict() for shard in self.shards]}

    @staticmethod
    def from_json(content: dict[str, Any]) -> "PlacedTable":
        """Read what `to_json` returned."""
        shards = tuple(_shard_from_json(shard) for shard in content["shards"])
        values: dict[str, Any] = {**content, "shards": shards}
        return PlacedTable(**values)


class RankLoad(NamedTuple):
    """What all tables together take on one rank."""

    rank: int
    hbm_bytes: int
    ddr_bytes: int
    time_ms: float


def rank_loads(tables: Sequence[PlacedTable], world_size: int) -> list[RankLoad]:
    """Return memory and time per rank, rank 0 first."""
    hbm, ddr, time_ms = [0] * world_size, [0] * world_size, [0.0] * world_size
    for shard in (shard for table in tables for shard in table.shards):
        hbm[shard.rank] += shard.hbm_bytes
        ddr[shard.rank] += shard.ddr_bytes
        time_ms[shard.rank] += shard.time_ms
    return [RankLoad(*load) for load in zip(range(world_size), hbm, ddr, time_ms, strict=True)]


def _shard_from_json(content: dict[str, Any]) -> Shard:
    values: dict[str, Any] = {
        **content,
        "offset": tuple(content["offset"]),
        "size": tuple(content["size"]),
    }
    return Shard(**values)
