"""Causal transformer over sequences that are filled up at their end.

Legend: B sequences, S tokens, D width, H heads.
"""

from typing import final

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError
from trec_semid.layers.dropout import Dropout


class TransformerConfig(Config):
    """A stack of pre-norm blocks."""

    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 2
    hidden_dim: PositiveInt | None = None
    """Of the feed-forward part; four times the width where not given."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """On CPU a multiple of 1 / 256 (`layers.dropout`)."""
    attention_dropout: float | None = Field(None, ge=0, lt=1)
    """Of attention's weights; `dropout` where not given. 0 is much faster on CPU over long sequences."""
    init_std: PositiveFloat = 0.02
    """Of weights at the start; small, as rows of item tables are (`start_small`)."""

    @property
    def dropout_of_attention(self) -> float:
        """Return the rate that holds."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout

    def expect_divides(self, dim: int, name: str) -> None:
        """Raise `ConfigError` where heads do not divide the width of the stack `name`."""
        if dim % self.num_heads:
            raise ConfigError(
                f"{name}.num_heads: {self.num_heads} heads do not divide width {dim}. Change one of them."
            )


def start_small(blocks: nn.Module, std: float) -> None:
    """Draw all linear weights from N(0, std^2) and set biases to 0, as GPT-2 and BERT do.

    Rows of item tables start small as well: two blocks that start at torch's default add 2.6 times what
    SASRec reads, two of these a quarter of it (norms; width 64, rows of .02). What that changed is in
    docs/results/beauty.md.
    """
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)


def block_causal_mask(num_blocks: int, block: int, device: torch.device | None = None) -> Tensor:
    """Return (S, S) bool, True where a token may look: its own block and all blocks before it.

    Args:
        num_blocks: S / block.
        block: tokens of a block, such as the tokens of one item; 1 is the plain causal mask.
        device: where.
    """
    place = torch.arange(num_blocks * block, device=device) // block
    return place.unsqueeze(1) >= place.unsqueeze(0)


@final
class Transformer(nn.Module):
    """x <- x + attention(norm(x)); x <- x + W' gelu(W norm(x)); a last norm. Masked as its caller says.

    Sequences need no mask for what fills them up at the end: under a causal mask no token looks there;
    what comes out there is to be ignored. Source: Vaswani et al., "Attention Is All You Need", 2017,
    with the norm before each part.
    """

    def __init__(self, dim: int, config: TransformerConfig, *, has_last_norm: bool = True) -> None:
        super().__init__()
        config.expect_divides(dim, "transformer")
        self.blocks = nn.ModuleList(_Block(dim, config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(dim) if has_last_norm else nn.Identity()
        start_small(self.blocks, config.init_std)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (B, S, D).

        Args:
            x: (B, S, D).
            mask: (S, S) bool, or what is broadcast to (B, H, S, S), True where a token may look; the plain
                causal mask where not given.
        """
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class _Block(nn.Module):
    """One attention and one feed-forward part."""

    def __init__(self, dim: int, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads, self.rate = config.num_heads, config.dropout_of_attention
        self.attention_norm, self.feed_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.project, self.merge = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        hidden = config.hidden_dim or 4 * dim
        self.widen, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, S, D)."""
        x = x + self.drop(self._attend(self.attention_norm(x), mask))
        return x + self.drop(self.narrow(self.drop(gelu(self.widen(self.feed_norm(x))))))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        parts = self.project(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(
            parts[0],
            parts[1],
            parts[2],
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=self.rate if self.training else 0.0,
        )
        return self.merge(mixed.transpose(1, 2).flatten(2))
