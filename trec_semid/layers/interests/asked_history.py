"""A block in which several questions of a place look at what was read up to it.

Legend: B rows, T places that ask, n questions a place, L memory places, D width, H heads.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from trec_semid.layers.attention import TransformerConfig, start_small
from trec_semid.layers.dropout import Dropout


@final
class AskedHistory(nn.Module):
    """y = q + attention(norm(q), norm(memory)); y + feed-forward(norm(y)); a last norm.

    Questions do not see each other. Source: the attention to a memory of Vaswani et al., "Attention Is All
    You Need", 2017, norms first.
    """

    def __init__(self, dim: int, config: TransformerConfig) -> None:
        super().__init__()
        config.expect_divides(dim, "asked history")
        self.num_heads, self.rate = config.num_heads, config.dropout_of_attention
        self.ask_norm, self.memory_norm, self.feed_norm, self.norm = (nn.LayerNorm(dim) for _ in range(4))
        self.ask, self.offer, self.answer = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        hidden = config.hidden_dim or 4 * dim
        self.widen, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.drop = Dropout(config.dropout)
        start_small(self, config.init_std)

    def forward(self, asked: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Return (B, T, n, D).

        Args:
            asked: (B, T, n, D).
            memory: (B, L, D).
            mask: (T, L) or (B, T, L) bool, True where a place may look; it may look somewhere.
        """
        keys, values = (
            self.offer(self.memory_norm(memory)).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        questions = self.ask(self.ask_norm(asked)).flatten(1, 2).unflatten(2, (self.num_heads, -1))
        mask = mask.unsqueeze(0) if mask.dim() == 2 else mask
        looked = scaled_dot_product_attention(
            questions.transpose(1, 2),
            keys,
            values,
            # A place's questions stand side by side, and may look at the same.
            attn_mask=mask.repeat_interleave(asked.shape[2], 1).unsqueeze(1),
            dropout_p=self.rate if self.training else 0.0,
        )
        y = asked + self.drop(self.answer(looked.transpose(1, 2).flatten(2)).view(asked.shape))
        return self.norm(y + self.drop(self.narrow(self.drop(gelu(self.widen(self.feed_norm(y)))))))


def causal_mask(num_places: int, device: torch.device | None = None) -> Tensor:
    """Return (L, L) bool: a place looks at itself and at those before."""
    at = torch.arange(num_places, device=device)
    return at <= at.unsqueeze(1)
