"""Tables of codes, fetched whole: every rank holds all rows of a step, and gradients go back to the shards.

Legend: R positions, K codes of a codebook, D table width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torchrec.distributed.types import LazyAwaitable
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from trec_semid.core.errors import ConfigError
from trec_semid.embeddings.collection import keyed_jagged


class CodeTable(NamedTuple):
    """The table of one position."""

    name: str
    num_rows: int
    """K + 1: the last row is that of the 'missing' code."""


@final
class CodeTables(nn.Module):
    """Fetches the rows of all code tables through one (sharded) embedding collection.

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
        self.tables = EmbeddingCollection(
            [
                EmbeddingConfig(
                    name=table.name,
                    num_embeddings=table.num_rows,
                    embedding_dim=dim,
                    feature_names=[f"all_{table.name}"],
                )
                for table in tables
            ],
            device=torch.device(device),
        )
        self.features = [f"all_{table.name}" for table in tables]
        self.register_buffer("all_rows", torch.arange(self.num_rows).repeat(len(tables)), persistent=False)

    def forward(self) -> Tensor:
        """Return (R, K + 1, D)."""
        lengths = torch.full((len(self.features),), self.num_rows, device=self.all_rows.device)
        looked_up: Any = self.tables(keyed_jagged(self.features, self.all_rows, lengths.int()))
        if isinstance(looked_up, LazyAwaitable):
            looked_up = looked_up.wait()
        return torch.stack([looked_up[name].values() for name in self.features])
