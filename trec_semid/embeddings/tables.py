"""Tables as TorchRec embedding-bag configs, and weights that depend on the seed and the row alone."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType

from trec_semid.core.config import Config
from trec_semid.core.seeds import torch_generator

BLOCK_ROWS = 4_096
"""Rows drawn from one seed; a rank draws only the blocks that overlap its shards."""


class TablesConfig(Config):
    """Sizes and start of the embedding tables."""

    dim: int = Field(16, ge=4, multiple_of=4)
    """Width of every table; the kernels want multiples of 4."""
    init_std: float = Field(0.01, ge=0)
    """Rows start as normal(0, init_std). Rows of users and items without training events stay there:
    small against trained rows, so they say next to nothing."""
    pooling: Literal["mean", "sum"] = "mean"
    """How several ids of one feature (history, list fields) become one vector; no ids give zeros."""


class TableSpec(NamedTuple):
    """One table and the features that read it."""

    name: str
    num_rows: int
    features: tuple[str, ...]


def bag_configs(specs: Sequence[TableSpec], config: TablesConfig) -> list[EmbeddingBagConfig]:
    """Return TorchRec's config of each table; ids of a feature are added up, whatever the pooling."""
    return [
        EmbeddingBagConfig(
            name=spec.name,
            num_embeddings=spec.num_rows,
            embedding_dim=config.dim,
            feature_names=list(spec.features),
            # Means are computed in `PooledTables`, which says why.
            pooling=PoolingType.SUM,
        )
        for spec in specs
    ]


def initial_rows(table: str, dim: int, first: int, num_rows: int, *, std: float, seed: int) -> Tensor:
    """Return rows `first` to `first + num_rows` of a table's initial weights, (num_rows, dim).

    They depend on the seed, the table's name and the row, so every plan and number of ranks starts alike.
    """
    blocks: list[Tensor] = []
    for block in range(first // BLOCK_ROWS, -(-(first + num_rows) // BLOCK_ROWS)):
        generator = torch_generator(seed, "table", table, block)
        # The whole block, even for a few of its rows: a row must not depend on where a shard begins.
        drawn = torch.randn(BLOCK_ROWS, dim, generator=generator) * std
        start = block * BLOCK_ROWS
        blocks.append(drawn[max(first - start, 0) : first + num_rows - start])
    return torch.cat(blocks) if blocks else torch.empty(0, dim)
