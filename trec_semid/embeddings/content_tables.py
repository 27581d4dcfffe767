"""Content of all items in sharded half-precision tables that nothing trains.

Legend: N items, U items of a lookup, M modalities.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torchrec.distributed.types import LazyAwaitable
from torchrec.modules.embedding_configs import DataType, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from trec_semid.embeddings.collection import keyed_jagged

_MULTIPLE = 4
"""Widths that the kernels take."""


@final
class ContentTables(nn.Module):
    """Looks up content vectors by item row, without a gradient.

    A module of its own beside the ranker: no optimizer sees it and no checkpoint holds it, since the dataset
    does. Presence masks (a bit an item and modality) lie on every rank.
    """

    present: Tensor

    def __init__(self, dims: Mapping[str, int], num_items: int, *, device: str = "cpu") -> None:
        super().__init__()
        self.dims = dict(dims)
        """Modality to width, in the tokenizer's order."""
        self.tables = EmbeddingCollection(
            [
                EmbeddingConfig(
                    name=content_table(name),
                    num_embeddings=num_items,
                    embedding_dim=-(-dim // _MULTIPLE) * _MULTIPLE,
                    feature_names=[f"content_{name}"],
                    data_type=DataType.FP16,
                )
                for name, dim in dims.items()
            ],
            device=torch.device(device),
        )
        self.register_buffer("present", torch.zeros(num_items, len(dims), dtype=torch.bool))

    @torch.no_grad()
    def forward(self, rows: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return vectors (U, dim_m) of each modality and presence (U, M) of (U,) item rows.

        U may differ between ranks.
        """
        features = [f"content_{name}" for name in self.dims]
        lengths = torch.full((len(features),), len(rows), dtype=torch.int32, device=rows.device)
        looked_up: Any = self.tables(keyed_jagged(features, rows.repeat(len(features)), lengths))
        if isinstance(looked_up, LazyAwaitable):
            looked_up = looked_up.wait()
        vectors = [looked_up[f"content_{name}"].values()[:, :dim].float() for name, dim in self.dims.items()]
        return tuple(vectors), self.present[rows]


def content_table(modality: str) -> str:
    """Return the name of a modality's table."""
    return f"t_content_{modality}"
