"""Tables of a bundle: row ranges in safetensors files, in full or in 8 bits a number.

Legend: N rows, D width, n looked-up rows.
"""

from collections.abc import Iterator
from typing import final

import safetensors.torch
import torch
from torch import Tensor

from trec_semid.checkpoints.manifest import ShardFacts, TableFacts, TableType, file_facts, read_checked
from trec_semid.core.paths import join, write_bytes
from trec_semid.serving.ids import check_rows


def write_table(bundle: str, name: str, weight: Tensor, dtype: TableType, *, shard_rows: int) -> TableFacts:
    """Write a table (N, D) in shards of at most `shard_rows` rows."""
    shards: list[ShardFacts] = []
    for first in range(0, len(weight), shard_rows):
        part = weight[first : first + shard_rows].float()
        content = safetensors.torch.save(_encode(part, dtype))
        file = f"tables/{name}/shard-{len(shards):05d}.safetensors"
        write_bytes(join(bundle, file), content)
        known = file_facts(file, content).model_dump()
        shards.append(ShardFacts(**known, first_row=first, num_rows=len(part)))
    return TableFacts(name=name, rows=len(weight), dim=weight.shape[1], dtype=dtype, shards=tuple(shards))


@final
class BundleTable:
    """Rows of one table, decoded as they are looked up."""

    def __init__(self, bundle: str, facts: TableFacts) -> None:
        self.facts, self._bundle = facts, bundle
        parts = list(_parts(bundle, facts))
        self._columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def rows(self, ids: Tensor) -> Tensor:
        """Return (n, D) float32.

        Raises:
            DataError: an id is no whole number, or outside the table.
        """
        check_rows(ids, self.facts.name, self.facts.rows, self._bundle)
        if self.facts.dtype == "fp32":
            return self._columns["weight"][ids]
        codes, scale, low = (self._columns[name][ids] for name in ("codes", "scale", "low"))
        return codes.float() * scale.unsqueeze(1) + low.unsqueeze(1)


def _parts(bundle: str, facts: TableFacts) -> Iterator[dict[str, Tensor]]:
    for shard in facts.shards:
        yield safetensors.torch.load(read_checked(bundle, shard))


def _encode(part: Tensor, dtype: TableType) -> dict[str, Tensor]:
    if dtype == "fp32":
        return {"weight": part.contiguous()}
    low, high = part.amin(1), part.amax(1)
    scale = (high - low) / 255
    steps = (part - low.unsqueeze(1)) / torch.where(scale > 0, scale, 1.0).unsqueeze(1)
    return {"codes": steps.round().clamp(0, 255).to(torch.uint8), "scale": scale, "low": low}
