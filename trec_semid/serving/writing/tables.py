"""Writes tables of a bundle: row ranges in safetensors files, in full, in half, or in 8 or 4 bits a number.

`serving.reader` maps and decodes them. Legend: N rows, n of a stretch, D width.
"""

from collections.abc import Iterable, Iterator

import safetensors.torch
import torch
from torch import Tensor

from trec_semid.checkpoints.manifest import ShardFacts, TableFacts, TableType, write_file
from trec_semid.core.errors import ShapeError

_LARGEST_HALF = torch.finfo(torch.float16).max


def write_table(
    bundle: str, name: str, stretches: Iterable[Tensor], dtype: TableType, *, shard_rows: int
) -> TableFacts:
    """Write a table in shards of `shard_rows` rows, the last one shorter.

    Memory is that of a shard and a stretch.

    Args:
        bundle: folder.
        name: of the table.
        stretches: (n, D) consecutive rows each, all of one width.
        dtype: how numbers are stored.
        shard_rows: of each file.

    Raises:
        ShapeError: a table without rows.
    """
    shards: list[ShardFacts] = []
    first, dim = 0, 0
    for part in _regrouped(stretches, shard_rows):
        content = safetensors.torch.save(encode(part.float(), dtype))
        known = write_file(bundle, f"tables/{name}/shard-{len(shards):05d}.safetensors", content)
        shards.append(ShardFacts(**known.model_dump(), first_row=first, num_rows=len(part)))
        first, dim = first + len(part), part.shape[1]
    if not shards:
        raise ShapeError(f"table {name}: has no rows.")
    return TableFacts(name=name, rows=first, dim=dim, dtype=dtype, shards=tuple(shards))


def _regrouped(stretches: Iterable[Tensor], shard_rows: int) -> Iterator[Tensor]:
    """Yield the same rows, so many at a time."""
    kept: list[Tensor] = []
    num_kept = 0
    for stretch in stretches:
        for part in stretch.split(shard_rows):
            kept.append(part)
            num_kept += len(part)
            while num_kept >= shard_rows:
                rows = torch.cat(kept)
                yield rows[:shard_rows]
                kept = [rows[shard_rows:].clone()] if num_kept > shard_rows else []
                num_kept -= shard_rows
    if num_kept:
        yield torch.cat(kept)


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
