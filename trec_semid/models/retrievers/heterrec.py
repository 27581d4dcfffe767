"""HeterRec: an item as a set of tokens, a transformer over tokens, then one over items.

Legend: B rows, L longest history, F tokens of an item, D width.
"""

import math
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from trec_semid.core.errors import ShapeError
from trec_semid.layers.attention import Transformer, TransformerConfig, block_causal_mask
from trec_semid.layers.dropout import Dropout
from trec_semid.models.item_tokens import ItemTokens
from trec_semid.models.next_item import NextItemModel, SequenceModel
from trec_semid.models.retriever import Frame, Retriever, RetrieverConfig


class HeterrecConfig(RetrieverConfig):
    """HeterRec (Hierarchical Causal Transformer with Heterogeneous Information), SIGIR 2025."""

    kind: Literal["heterrec"] = "heterrec"
    tokens: TransformerConfig = TransformerConfig.model_validate({"num_layers": 1})
    """Over the tokens of all items of a history."""
    items: TransformerConfig = TransformerConfig.model_validate({"num_layers": 1})
    """Over items."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Of what is read."""


@final
class HeterrecSequences(SequenceModel):
    """x_tj = sqrt(D) token_j of t + type_j + pos_t, d = transformer(x) - x; transformer(sum_j x + mean_j d).

    Tokens look at all tokens of their own item and of those before; items at themselves and those before.
    The paper's equations are not public in full; layout and masks are those of its text. Tokens add up as
    they do where the item is the target, so the first transformer has no last norm. What it adds is averaged:
    the sum would be F additions on top of what was read (docs/results/beauty.md has what changed with it).
    """

    def __init__(self, config: HeterrecConfig, *, num_tokens: int, max_len: int, dim: int) -> None:
        super().__init__()
        self.scale = math.sqrt(dim)
        self.types = nn.Parameter(torch.randn(num_tokens, dim) * 0.02)
        self.places = nn.Embedding(max_len, dim)
        nn.init.normal_(self.places.weight, std=0.02)
        self.drop = Dropout(config.dropout)
        self.over_tokens = Transformer(dim, config.tokens, has_last_norm=False)
        self.over_items = Transformer(dim, config.items)

    def forward(self, histories: Tensor) -> Tensor:
        """Return states (B, L, D)."""
        num_items, per_item = histories.shape[1:3]
        if per_item != len(self.types):
            raise ShapeError(f"tokens: {per_item} an item, the model was built for {len(self.types)}.")
        place = self.places(torch.arange(num_items, device=histories.device))
        read = self.drop(self.scale * histories + self.types + place.unsqueeze(1))
        mask = block_causal_mask(num_items, per_item, histories.device)
        mixed = self.over_tokens(read.flatten(1, 2), mask).unflatten(1, (num_items, per_item))
        return self.over_items(read.sum(2) + (mixed - read).mean(2))


@final
class Heterrec(Retriever[HeterrecConfig]):
    """HeterRec over items of at least one token."""

    has_code_heads = True

    def build(self, items: ItemTokens, frame: Frame) -> NextItemModel:
        """See `Retriever`."""
        sequences = HeterrecSequences(
            self.config, num_tokens=items.num_tokens, max_len=frame.max_len, dim=frame.dim
        )
        return NextItemModel(items, sequences, frame.loss, has_codes=frame.predicts_codes)
