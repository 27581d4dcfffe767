"""Writes tables of a bundle: row ranges in safetensors files, in full, in half, or in 8 or 4 bits a number.

`serving.reader` maps and decodes them. Legend: N rows, n of a stretch, D width.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from trec_semid.checkpoints.bundle_files import write_file
from trec_semid.checkpoints.manifest import ShardFacts, TableFacts, TableType
from trec_semid.core.errors import ShapeError
from trec_semid.runtime.ranks import gather_objects, place_among_ranks
from trec_semid.search.catalogue import stretch_of

_LARGEST_HALF = torch.finfo(torch.float16).max


class TableRows(NamedTuple):
    """A table that is to be written."""

    name: str
    num_rows: int
    dtype: TableType
    """How numbers are stored."""
    read: Callable[[int, int], Tensor]
    """Gives (n, D) consecutive rows, from one up to another."""


class Shard(NamedTuple):
    """Some rows of a table."""

    table: int
    """Which of the tables it is of."""
    number: int
    first_row: int
    num_rows: int


def write_tables(bundle: str, tables: Sequence[TableRows], shard_rows: int) -> tuple[TableFacts, ...]:
    """Write tables in shards of `shard_rows` rows, the last one of each shorter; all ranks together.

    Of all shards, table after table, every rank writes a stretch. Memory is that of a shard.

    Args:
        bundle: folder, which all ranks can write to.
        tables: the same on every rank.
        shard_rows: of each file.

    Raises:
        ShapeError: a table without rows.
    """
    for table in tables:
        if not table.num_rows:
            raise ShapeError(f"table {table.name}: has no rows.")
    shards = [
        Shard(at, number, first, min(shard_rows, table.num_rows - first))
        for at, table in enumerate(tables)
        for number, first in enumerate(range(0, table.num_rows, shard_rows))
    ]
    own = shards[stretch_of(*place_among_ranks(), len(shards))]
    written = [write_shard(bundle, tables[shard.table], shard) for shard in own]
    of_all = [each for of_rank in gather_objects(written) for each in of_rank]
    facts: list[TableFacts] = []
    for at, table in enumerate(tables):
        parts = [each for shard, each in zip(shards, of_all, strict=True) if shard.table == at]
        ranges = tuple(known for known, _ in parts)
        dim = parts[0][1]
        facts.append(
            TableFacts(name=table.name, rows=table.num_rows, dim=dim, dtype=table.dtype, shards=ranges)
        )
    return tuple(facts)


def write_shard(bundle: str, table: TableRows, shard: Shard) -> tuple[ShardFacts, int]:
    """Write a file of a table; return what it is, and D.

    Args:
        bundle: folder.
        table: that it is of.
        shard: which rows.
    """
    rows = table.read(shard.first_row, shard.first_row + shard.num_rows)
    content = safetensors.torch.save(encode(rows.float(), table.dtype))
    known = write_file(bundle, f"tables/{table.name}/shard-{shard.number:05d}.safetensors", content)
    return (
        ShardFacts(**known.model_dump(), first_row=shard.first_row, num_rows=shard.num_rows),
        rows.shape[1],
    )


def encode(rows: Tensor, dtype: TableType) -> dict[str, Tensor]:
    """Return how (n, D) float32 rows are stored; a number is off by half a step of its row at most.

    int8: (n, D) `codes`; int4: (n, (D + 1) // 2) `codes`, two a byte; both with (n,) `scale` and `low`.
    """
    if dtype == "fp32":
        return {"weight": rows.contiguous()}
    if dtype == "fp16":
        return {"weight": rows.clamp(-_LARGEST_HALF, _LARGEST_HALF).half().contiguous()}
    levels = 255 if dtype == "int8" else 15
    low, high = rows.amin(1), rows.amax(1)
    scale = (high - low) / levels
    steps = (rows - low.unsqueeze(1)) / torch.where(scale > 0, scale, 1.0).unsqueeze(1)
    codes = steps.round().clamp(0, levels).to(torch.uint8)
    if dtype == "int4":
        codes = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))
        codes = codes[:, ::2] | (codes[:, 1::2] << 4)
    return {"codes": codes.contiguous(), "scale": scale, "low": low}
