"""RPG: the mean of an item's tokens, a causal transformer over items, parallel heads for all codes.

Legend: B rows, L longest history, U listed items, F tokens of an item, D width.
"""

from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from trec_semid.core.config import Config
from trec_semid.layers.attention import Transformer, TransformerConfig
from trec_semid.models.retriever import SequenceModel


class RpgConfig(Config):
    """RPG: Generating Long Semantic IDs in Parallel for Recommendation, KDD 2025."""

    kind: Literal["rpg"] = "rpg"
    transformer: TransformerConfig = TransformerConfig.model_validate({})
    dropout: float = Field(0.2, ge=0, lt=1)
    """Of what is read."""


@final
class Rpg(SequenceModel):
    """x_t = dropout(mean of item t's tokens + pos_t), states = causal transformer(x).

    With items of codes alone and `CodeHeads` it is the method of the paper, whose transformer is GPT-2's.
    """

    def __init__(self, config: RpgConfig, *, max_len: int, dim: int) -> None:
        super().__init__()
        self.places = nn.Embedding(max_len, dim)
        nn.init.normal_(self.places.weight, std=0.02)
        self.drop = nn.Dropout(config.dropout)
        self.transformer = Transformer(dim, config.transformer)

    def forward(self, tokens: Tensor, inputs: Tensor) -> Tensor:
        """Return states (B, L, D)."""
        vectors = tokens.mean(1)[inputs] + self.places(torch.arange(inputs.shape[1], device=inputs.device))
        return self.transformer(self.drop(vectors))
