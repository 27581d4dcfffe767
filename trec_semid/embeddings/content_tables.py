"""Standardised content of all items in sharded half-precision tables that nothing trains.

Legend: N items, U items of a lookup, M modalities, D sum of their widths.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torchrec.distributed.types import LazyAwaitable
from torchrec.modules.embedding_configs import DataType, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from trec_semid.embeddings.collection import keyed_jagged

PREFIX = "t_content_"
"""Names of content tables begin so, and of no others; rules that place them do as well."""
_MULTIPLE = 4
"""Widths that the kernels take."""


@final
class ContentTables(nn.Module):
    """Looks up standardised content by item row, without a gradient.

    A module of its own beside the ranker: no optimizer sees it and no checkpoint holds it, since the dataset
    does. Presence masks (a bit an item and modality) lie on every rank.
    """

    present: Tensor

    def __init__(self, dims: Mapping[str, int], num_items: int, *, device: str = "cpu") -> None:
        super().__init__()
        self.dims = dict(dims)
        """Modality to width, in the tokenizer's order."""
        # A collection each: the tables of one must have one width.
        self.tables = nn.ModuleDict(
            {name: _table(name, dim, num_items, device) for name, dim in dims.items()}
        )
        self.register_buffer("present", torch.zeros(num_items, len(dims), dtype=torch.bool))

    @torch.no_grad()
    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (U, D) float32, modalities side by side, and presence (U, M) of (U,) item rows.

        U may differ between ranks.
        """
        lengths = torch.tensor([len(rows)], dtype=torch.int32, device=rows.device)
        # All lookups start before the first is waited for, so that sharded ones need not queue.
        lookups: list[Any] = [self.tables[name](keyed_jagged([name], rows, lengths)) for name in self.dims]
        waited = [some.wait() if isinstance(some, LazyAwaitable) else some for some in lookups]
        # Tables are as wide as the next multiple that kernels take; the columns beyond are cut off.
        halves = [
            some[name].values()[:, :dim] for some, (name, dim) in zip(waited, self.dims.items(), strict=True)
        ]
        return torch.cat(halves, dim=1).float(), self.present[rows]


def _table(modality: str, dim: int, num_items: int, device: str) -> EmbeddingCollection:
    config = EmbeddingConfig(
        name=content_table(modality),
        num_embeddings=num_items,
        embedding_dim=-(-dim // _MULTIPLE) * _MULTIPLE,
        feature_names=[modality],
        data_type=DataType.FP16,
    )
    return EmbeddingCollection([config], device=torch.device(device))


def content_table(modality: str) -> str:
    """Return the name of a modality's table."""
    return f"{PREFIX}{modality}"
