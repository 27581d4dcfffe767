"""SASRec and RPG: one vector an item, a causal transformer over items.

Legend: B rows, L longest history, F tokens of an item, D width.
"""

import math
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from trec_semid.core.config import Config
from trec_semid.layers.attention import Transformer, TransformerConfig
from trec_semid.layers.dropout import Dropout
from trec_semid.models.item_tokens import Tokens
from trec_semid.models.retriever import SequenceModel


class ItemTransformerConfig(Config):
    """Sizes of either."""

    transformer: TransformerConfig = TransformerConfig.model_validate({})
    dropout: float = Field(0.2, ge=0, lt=1)
    """Of what is read."""


class SasrecConfig(ItemTransformerConfig):
    """Kang and McAuley, "Self-Attentive Sequential Recommendation", 2018, with blocks that norm first."""

    kind: Literal["sasrec"] = "sasrec"


class RpgConfig(ItemTransformerConfig):
    """RPG: Generating Long Semantic IDs in Parallel for Recommendation, KDD 2025.

    With items of codes alone and `CodeHeads` it is the method of the paper, whose transformer is GPT-2's.
    """

    kind: Literal["rpg"] = "rpg"


@final
class ItemTransformer(SequenceModel):
    """x_t = dropout(s v_t + pos_t), states = causal transformer(x), v_t an item's tokens in one.

    SASRec adds them up and reads them sqrt(D)-fold, as its code does (and Vaswani et al., 2017, 3.4): with ID
    tokens alone it is the published model, with content and codes besides it is the hybrid, whose item
    vectors are shared by input and output. RPG takes their mean, and s = 1 as in GPT-2.
    """

    def __init__(self, config: SasrecConfig | RpgConfig, *, max_len: int, dim: int) -> None:
        super().__init__()
        self.takes_mean = isinstance(config, RpgConfig)
        self.scale = 1.0 if self.takes_mean else math.sqrt(dim)
        self.places = nn.Embedding(max_len, dim)
        nn.init.normal_(self.places.weight, std=0.02)
        self.drop = Dropout(config.dropout)
        self.transformer = Transformer(dim, config.transformer)

    def look_up(self, tokens: Tokens, rows: Tensor) -> Tensor:
        """Return (n, 1, D): tokens in one, which is cheaper once an item than once a place that reads it."""
        found = tokens.total.index_select(0, rows).unsqueeze(1)
        return found / tokens.num_tokens if self.takes_mean else found

    def forward(self, histories: Tensor) -> Tensor:
        """Return states (B, L, D)."""
        vectors = histories.mean(2) if self.takes_mean else histories.sum(2)
        place = self.places(torch.arange(histories.shape[1], device=histories.device))
        return self.transformer(self.drop(self.scale * vectors + place))
