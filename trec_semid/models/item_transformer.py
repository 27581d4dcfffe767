"""One vector an item and a causal transformer over items: what SASRec and RPG read histories with.

Legend: B rows, L longest history, F tokens of an item, D width.
"""

import math
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn

from trec_semid.layers.attention import Transformer, TransformerConfig
from trec_semid.layers.dropout import Dropout
from trec_semid.models.item_tokens import Tokens
from trec_semid.models.next_item import SequenceModel
from trec_semid.models.retriever import RetrieverConfig


class ItemTransformerConfig(RetrieverConfig):
    """Sizes of either."""

    transformer: TransformerConfig = TransformerConfig.model_validate({})
    dropout: float = Field(0.2, ge=0, lt=1)
    """Of what is read."""


@final
class ItemTransformer(SequenceModel):
    """x_t = dropout(s v_t + pos_t), states = causal transformer(x), v_t an item's tokens in one.

    SASRec adds them up and reads them sqrt(D)-fold, as its code does (and Vaswani et al., 2017, 3.4): with ID
    tokens alone it is the published model, with content and codes besides it is the hybrid, whose item
    vectors are shared by input and output. RPG takes their mean, and s = 1 as in GPT-2.
    """

    def __init__(self, config: ItemTransformerConfig, *, takes_mean: bool, max_len: int, dim: int) -> None:
        """Draw the weights.

        Args:
            config: sizes.
            takes_mean: whether an item is the mean of its tokens, as in RPG, and not their scaled sum.
            max_len: longest history.
            dim: D.
        """
        super().__init__()
        self.takes_mean = takes_mean
        self.scale = 1.0 if self.takes_mean else math.sqrt(dim)
        self.places = nn.Embedding(max_len, dim)
        nn.init.normal_(self.places.weight, std=0.02)
        self.drop = Dropout(config.dropout)
        self.transformer = Transformer(dim, config.transformer)

    def look_up(self, tokens: Tokens, rows: Tensor) -> Tensor:
        """Return (num_rows, 1, D): tokens in one, cheaper once an item than once a place that reads it."""
        totals = tokens.total.index_select(0, rows).unsqueeze(1)
        return totals / tokens.num_tokens if self.takes_mean else totals

    def forward(self, histories: Tensor) -> Tensor:
        """Return states (B, L, D)."""
        vectors = histories.mean(2) if self.takes_mean else histories.sum(2)
        place = self.places(torch.arange(histories.shape[1], device=histories.device))
        return self.transformer(self.drop(self.scale * vectors + place))
