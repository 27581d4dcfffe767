"""Tables of codes, fetched whole: every rank holds all rows of a step, and gradients go back to the shards.

Legend: R positions, K codes of a codebook, D table width.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from trec_semid.core.errors import ConfigError
from trec_semid.embeddings.collection import PooledTables, keyed_jagged
from trec_semid.embeddings.tables import TablesConfig, TableSpec


class CodeTable(NamedTuple):
    """The table of one position."""

    name: str
    num_rows: int
    """K + 1: the last row is that of the 'missing' code."""


@final
class CodeTables(nn.Module):
    """Fetches the rows of all code tables through one (sharded) embedding-bag collection, one row a bag.

    A weighted lookup through sharded tables loses the gradient of its weights. Fetching the K + 1 rows of
    each table once a step and indexing here is exact, and costs R K D numbers a step.
    """

    all_rows: Tensor

    def __init__(self, tables: Sequence[CodeTable], dim: int, *, device: str = "cpu") -> None:
        super().__init__()
        sizes = {table.num_rows for table in tables}
        if len(sizes) != 1:
            raise ConfigError(
                f"codebooks: all need one size to be tuned (got tables of {sorted(sizes)} rows). "
                "Tokenize with one codebook_size."
            )
        self.num_rows = sizes.pop()
        self.rows = PooledTables(
            [TableSpec(table.name, table.num_rows, (f"all_{table.name}",)) for table in tables],
            # Each bag holds one row, so its sum is the row itself.
            TablesConfig.model_validate({"dim": dim, "pooling": "sum"}),
            [f"all_{table.name}" for table in tables],
            device=device,
        )
        self.register_buffer("all_rows", torch.arange(self.num_rows).repeat(len(tables)), persistent=False)

    def forward(self) -> Tensor:
        """Return (R, K + 1, D)."""
        one_each = torch.ones_like(self.all_rows, dtype=torch.int32)
        fetched = self.rows(keyed_jagged(self.rows.features, self.all_rows, one_each))
        return fetched.unflatten(1, (len(self.rows.features), -1)).transpose(0, 1).contiguous()
