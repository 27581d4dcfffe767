"""The light half: learnt queries pool a long history, read as codes alone, into coarse interests.

Legend: B users, L longest history, U listed items, Q queries, D width.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu
from torch.utils.checkpoint import checkpoint

from trec_semid.data.retrieval.places import CodedHistories, Places

_NUMBERS_AT_ONCE = {"cpu": 1 << 23, "cuda": 1 << 27}
"""Bound on what is read of histories at once: 32 MiB in float32 on a CPU, 512 MiB on a GPU."""
_BUCKETS_PER_DOUBLING = 4
"""Events that lie 20 and 23 back are told apart, those 800 and 900 back are not."""
_STEEPEST = 2.0
"""Power by which the weights of the most forgetful query fall at the start."""


class _Read(NamedTuple):
    """What queries read of listed items."""

    values: Tensor
    """(U, D)."""
    scores: Tensor
    """(U, Q)."""


@final
class LightHalf(nn.Module):
    """c_q = sum_l a_ql v(x_l) + e_q, a_q = softmax_l(s_q(x_l) + b_q(how far back l is)); then a feed-forward.

    s_q(x) = w_q . tanh(W norm(x)) and v are linear in what is looked up once an item, however often it stands
    in histories, so that a place costs a look-up and Q + D numbers, and the whole is linear in L. x is what
    an item's codes say of it: a sum of learnt rows, or what a codebook rebuilds. How far back an event lies
    counts in steps that grow with it; at the start one query weighs all events alike, and the next ones more
    and more those just past.
    Pooling by learnt queries is that of Lin et al., "A Structured Self-Attentive Sentence Embedding", 2017,
    and of ComiRec's SA, 2020; what HyMiRec (2025) pools with is not public.

    Histories are read so many at a time that memory stays bounded, and again in backward: what is kept of
    them is numbers of items.
    """

    buckets: Tensor

    def __init__(self, dim: int, num_queries: int, max_len: int, *, at_once: int | None = None) -> None:
        """Draw the weights.

        Args:
            dim: D.
            num_queries: Q.
            max_len: longest history.
            at_once: numbers of histories that are read at once; what suits the device where not given.
        """
        super().__init__()
        self.num_queries, self.at_once = num_queries, at_once
        self.norm = nn.LayerNorm(dim)
        self.widen, self.score = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, num_queries, bias=False)
        self.value = nn.Linear(dim, dim)
        self.types = nn.Parameter(torch.randn(num_queries, dim) * 0.02)
        buckets = (torch.arange(max_len).float().add(1).log2() * _BUCKETS_PER_DOUBLING).floor().long()
        self.register_buffer("buckets", buckets, persistent=False)
        # Horizons of their own: weights fall as (events back + 1)^-p, from not at all to the square.
        powers = torch.linspace(0, _STEEPEST, num_queries) * math.log(2) / _BUCKETS_PER_DOUBLING
        self.recency = nn.Parameter(-torch.arange(int(buckets[-1]) + 1).unsqueeze(1) * powers)
        self.feed_norm, self.out_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed, self.back = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, vectors: Tensor, places: Places | CodedHistories) -> Tensor:
        """Return (B, Q, D); of an empty history what queries are without any.

        Args:
            vectors: (U, D) of the items that histories are over.
            places: histories over them.
        """
        read = self._read(vectors)
        parts = [
            self._pooled(read, places.inputs[rows, :longest], places.lengths[rows])
            for rows, longest in self._parts(places)
        ]
        # The argsort of an order undoes it: users stand as in the batch again.
        return self._fed(torch.cat(parts)[places.order.argsort()])

    def of_cells(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Return (B, Q, D) of histories that bring their vectors (B, L, D) themselves, of (B,) lengths."""
        flat = vectors.flatten(0, 1)
        at = torch.arange(flat.shape[0], device=flat.device).view(vectors.shape[:2])
        read = self._read(flat)
        return self._fed(self._pool(*read, at, lengths))

    def _read(self, vectors: Tensor) -> _Read:
        x = self.norm(vectors)
        return _Read(self.value(x), self.score(torch.tanh(self.widen(x))))

    def _fed(self, pooled: Tensor) -> Tensor:
        pooled = pooled + self.types
        return self.out_norm(pooled + self.back(gelu(self.feed(self.feed_norm(pooled)))))

    def _parts(self, places: Places | CodedHistories) -> Iterator[tuple[Tensor, int]]:
        """Yield row numbers (b,) and the longest of these rows, shortest rows first."""
        at_once = self.at_once or _NUMBERS_AT_ONCE.get(places.inputs.device.type, _NUMBERS_AT_ONCE["cpu"])
        for rows, longest in places.by_length():
            size = max(1, at_once // (longest * (self.value.out_features + 3 * self.num_queries)))
            yield from ((part, longest) for part in rows.split(size))

    def _pooled(self, read: _Read, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return (b, Q, D) of (b, l) inputs."""
        pooled: Tensor = checkpoint(
            self._pool, *read, inputs, lengths, use_reentrant=False, preserve_rng_state=False
        )  # pyright: ignore[reportAssignmentType]
        return pooled

    def _pool(self, values: Tensor, scores: Tensor, inputs: Tensor, lengths: Tensor) -> Tensor:
        back = lengths.unsqueeze(1) - 1 - torch.arange(inputs.shape[1], device=inputs.device)
        recency = embedding(self.buckets[back.clamp(min=0)], self.recency)
        # An empty history has no place to read: its first one stands in, and counts 0.
        is_there = (back >= 0) | (lengths == 0).unsqueeze(1)
        of_places = (embedding(inputs, scores) + recency).float()
        weights = of_places.masked_fill(~is_there.unsqueeze(2), -torch.inf).softmax(1)
        weights = weights * (lengths > 0).view(-1, 1, 1)
        return torch.bmm(weights.mT.to(values.dtype), embedding(inputs, values))
