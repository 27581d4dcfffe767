"""SASRec: one vector an item, a causal transformer over items.

Legend: B rows, L longest history, U listed items, F tokens of an item, D width.
"""

from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from trec_semid.core.config import Config
from trec_semid.layers.attention import Transformer, TransformerConfig
from trec_semid.models.retriever import SequenceModel


class SasrecConfig(Config):
    """Kang and McAuley, "Self-Attentive Sequential Recommendation", 2018, with blocks that norm first."""

    kind: Literal["sasrec"] = "sasrec"
    transformer: TransformerConfig = TransformerConfig.model_validate({})
    dropout: float = Field(0.2, ge=0, lt=1)
    """Of what is read."""


@final
class Sasrec(SequenceModel):
    """x_t = dropout(sum of item t's tokens + pos_t), states = causal transformer(x).

    With ID tokens alone it is SASRec; with content and codes besides it is the hybrid, whose item vectors
    are shared by input and output.
    """

    def __init__(self, config: SasrecConfig, *, max_len: int, dim: int) -> None:
        super().__init__()
        self.places = nn.Embedding(max_len, dim)
        nn.init.normal_(self.places.weight, std=0.02)
        self.drop = nn.Dropout(config.dropout)
        self.transformer = Transformer(dim, config.transformer)

    def forward(self, tokens: Tensor, inputs: Tensor) -> Tensor:
        """Return states (B, L, D)."""
        vectors = tokens.sum(1)[inputs] + self.places(torch.arange(inputs.shape[1], device=inputs.device))
        return self.transformer(self.drop(vectors))
