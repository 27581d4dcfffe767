"""A transformer decoder that reads a memory, whole with teacher forcing or step by step with a cache.

Legend: B sequences, S memory tokens, T target tokens, W beams, D width, H heads.
"""

from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from trec_semid.layers.attention import TransformerConfig, start_small
from trec_semid.layers.dropout import Dropout


class Memory(NamedTuple):
    """What all steps and all beams of a sequence read: keys and values of each layer, computed once."""

    keys: tuple[Tensor, ...]
    """A (B, H, S, D / H) each."""
    values: tuple[Tensor, ...]
    mask: Tensor
    """(B, 1, 1, S) bool: which tokens are there."""


class Cache(NamedTuple):
    """Keys and values of the tokens so far, of each layer."""

    keys: tuple[Tensor, ...]
    """A (B, W, H, t, D / H) each."""
    values: tuple[Tensor, ...]

    def of_parents(self, parents: Tensor) -> "Cache":
        """Return the cache of beams that go on from (B, W) parents."""
        rows = torch.arange(len(parents), device=parents.device).unsqueeze(1)
        return Cache(
            tuple(part[rows, parents] for part in self.keys),
            tuple(part[rows, parents] for part in self.values),
        )


@final
class Decoder(nn.Module):
    """Blocks of causal self-attention, attention to the memory and feed-forward, each after a norm.

    Source: Vaswani et al., "Attention Is All You Need", 2017, with the norm before each part. The beams of a
    sequence are so many queries to one memory, which is never copied for them.
    """

    def __init__(self, dim: int, config: TransformerConfig) -> None:
        super().__init__()
        config.expect_divides(dim, "decoder")
        self.blocks = nn.ModuleList(_DecoderBlock(dim, config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(dim)
        start_small(self.blocks, config.init_std)

    def read(self, memory: Tensor, present: Tensor) -> Memory:
        """Return what blocks look at.

        Args:
            memory: (B, S, D).
            present: (B, S) bool; at least one a sequence.
        """
        pairs = [block.memory_of(memory) for block in self.blocks]  # pyright: ignore[reportCallIssue]
        keys, values = zip(*pairs, strict=True)
        return Memory(tuple(keys), tuple(values), present[:, None, None])

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Return (B, T, D), every token from those up to itself."""
        for layer, block in enumerate(self.blocks):
            # With teacher forcing a sequence is one beam of T tokens.
            x, _ = block(x.unsqueeze(1), memory, layer, None)
            x = x.squeeze(1)
        return self.norm(x)

    def last_of_beams(self, x: Tensor, memory: Memory) -> Tensor:
        """Return (B, W, D) at the last of beams' tokens (B, W, T, D): what `step` says, without a cache."""
        for layer, block in enumerate(self.blocks):
            x, _ = block(x, memory, layer, None)
        return self.norm(x[:, :, -1])

    def step(self, x: Tensor, memory: Memory, cache: Cache | None) -> tuple[Tensor, Cache]:
        """Return (B, W, D) of one more token of each beam, and the cache with it.

        Args:
            x: (B, W, D) the token.
            memory: from `read`.
            cache: of the tokens before, beams in the order of x; None before the first.
        """
        token = x.unsqueeze(2)
        keys_and_values: list[tuple[Tensor, Tensor]] = []
        for layer, block in enumerate(self.blocks):
            before = None if cache is None else (cache.keys[layer], cache.values[layer])
            token, own = block(token, memory, layer, before)
            keys_and_values.append(own)
        keys, values = zip(*keys_and_values, strict=True)
        return self.norm(token).squeeze(2), Cache(tuple(keys), tuple(values))


class _DecoderBlock(nn.Module):
    """One block over (B, W, T, D)."""

    def __init__(self, dim: int, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads, self.rate = config.num_heads, config.dropout_of_attention
        self.self_norm, self.memory_norm, self.feed_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.project, self.merge = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.ask, self.offer, self.answer = (
            nn.Linear(dim, dim),
            nn.Linear(dim, 2 * dim),
            nn.Linear(dim, dim),
        )
        hidden = config.hidden_dim or 4 * dim
        self.widen, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.drop = Dropout(config.dropout)

    def memory_of(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, H, S, D / H)."""
        keys, values = self.offer(memory).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return keys, values

    def forward(
        self, x: Tensor, memory: Memory, layer: int, before: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return (B, W, T, D), and keys and values (B, W, H, t, D / H) of all tokens so far."""
        mixed, own = self._attend(self.self_norm(x), before)
        x = x + self.drop(mixed)
        x = x + self.drop(self._look(self.memory_norm(x), memory, layer))
        return x + self.drop(self.narrow(self.drop(gelu(self.widen(self.feed_norm(x)))))), own

    def _attend(
        self, x: Tensor, before: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        parts = self.project(x).unflatten(3, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        query, key, value = parts.unbind(0)
        if before is not None:
            key, value = torch.cat([before[0], key], 3), torch.cat([before[1], value], 3)
        # torch aligns its causal mask with the first key: a new token after a cache would see that one alone.
        mixed = scaled_dot_product_attention(
            query, key, value, is_causal=before is None and query.shape[3] > 1, dropout_p=self._drops
        )
        return self.merge(mixed.transpose(2, 3).flatten(3)), (key, value)

    def _look(self, x: Tensor, memory: Memory, layer: int) -> Tensor:
        # Beams and tokens alike are queries to the one memory of their sequence.
        queries = self.ask(x).flatten(1, 2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        attended = scaled_dot_product_attention(
            queries, memory.keys[layer], memory.values[layer], attn_mask=memory.mask, dropout_p=self._drops
        )
        return self.answer(attended.transpose(1, 2).flatten(2)).unflatten(1, x.shape[1:3])

    @property
    def _drops(self) -> float:
        return self.rate if self.training else 0.0
