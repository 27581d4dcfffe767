"""Softmax cross-entropy over all items of a catalogue, or over drawn ones, without a tensor of all scores.

Legend: B queries, W targets a query at most, N items, S drawn items, D width.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

_CHUNK_BYTES = {"cpu": 2 * 2**20, "cuda": 512 * 2**20}
"""Bound on one tensor of scores; on CPU it stays in a core's cache, which is faster."""
_LISTED_AT_ONCE = 1 << 26
"""Which items are in which lists, bytes."""
_QUERIES_AT_ONCE = 1024
"""With more of them a tensor within the bound would be a few columns wide, and its products slow."""


class Drawn(NamedTuple):
    """Items that stand for all others."""

    items: Tensor
    """(S, D)."""
    rows: Tensor
    """(S,) int64: which item each one is."""
    log_q: Tensor
    """(S,) float32: log of the expected number of its draws."""


def full_softmax_loss(
    queries: Tensor, items: Tensor, targets: Tensor, *, scale: float = 1.0, chunk_bytes: int | None = None
) -> Tensor:
    """Return (B, W): -log softmax(scale * q_b . I)[target_bw], over all N items; 0 where there is no target.

    Scores exist for a chunk of items at a time; forward keeps the log-normaliser of each query, backward
    computes the scores once more. Memory beyond inputs and gradients does not grow with N. This is the
    exact loss that sampled and binary losses approximate. Under autocast products are of the lower
    precision, sums and exponentials of float32.

    Args:
        queries: (B, D).
        items: (N, D).
        targets: (B, W) int64 rows of `items`, or (B,) for one each; -1 for none.
        scale: multiplies every score, 1 / temperature.
        chunk_bytes: bound on the scores of a chunk; what suits the device where not given.
    """
    queries, items = _lowered(queries * scale, items)
    # torch cannot infer a -1 where there are no elements.
    wide = targets.view(len(queries), -1) if len(queries) else targets.view(0, 1)
    total, own = _Scores.apply(queries, items, wide, _NOTHING, chunk_bytes)
    return (total.unsqueeze(1) - own).masked_fill(wide < 0, 0.0).view(targets.shape)


def sampled_softmax_loss(
    queries: Tensor, items: Tensor, targets: Tensor, drawn: Drawn, *, chunk_bytes: int | None = None
) -> Tensor:
    """Return (B, W): cross-entropy of each target among drawn items; 0 where there is no target.

    exp(score) of a drawn item counts 1 / q times, q its expected number of draws, so that their sum is an
    unbiased estimate of that over all other items. The target is always there and counts once; draws of it
    are left out. Source: Bengio and Senecal,
    "Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language Model", 2008.
    Memory is bounded as in `full_softmax_loss`.

    Args:
        queries: (B, D).
        items: (N, D).
        targets: (B, W) int64 rows of `items`; -1 for none.
        drawn: items that stand for all others.
        chunk_bytes: bound on the scores of a chunk; what suits the device where not given.
    """
    num_targets = targets.shape[1]
    queries, items = _lowered(queries, items)
    own = torch.einsum("bd,bwd->bw", queries.float(), embedding(targets.clamp(min=0), items).float())
    # A query meets its targets one by one, since each leaves out draws of itself.
    repeated = queries.repeat_interleave(num_targets, 0)
    besides = _Besides(-drawn.log_q, drawn.rows, targets.flatten())
    nothing = targets.new_zeros(len(repeated), 0)
    others, _ = _Scores.apply(repeated, drawn.items.to(repeated.dtype), nothing, besides, chunk_bytes)
    return (torch.logaddexp(own, others.view(own.shape)) - own).masked_fill(targets < 0, 0.0)


def list_softmax_loss(
    queries: Tensor,
    items: Tensor,
    lists: Tensor,
    drawn: Drawn | None = None,
    *,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Return (B, M, W): cross-entropy of each item of a list, by each of the M queries that have this list.

    The log-normaliser of a query is over all items; or, where drawn items stand for these, over the list,
    each item of which counts once, and drawn ones, of which those of the list are left out. So a query is
    multiplied with drawn items once, however long its list is. Memory is bounded as in `full_softmax_loss`,
    but for B W D numbers of the listed items.

    Args:
        queries: (B, M, D).
        items: (N, D).
        lists: (B, W) int64 rows of `items`, no row twice in a list; -1 for none, whose loss is 0.
        drawn: items that stand for all others; none where not given.
        chunk_bytes: bound on the scores of a chunk; what suits the device where not given.
    """
    queries, items = _lowered(queries, items)
    is_none = (lists < 0).unsqueeze(1)
    own = torch.einsum("bmd,bwd->bmw", queries, embedding(lists.clamp(min=0), items)).float()
    # The first queries of all lists, then the second ones: query number b is one of list b modulo B.
    flat = queries.transpose(0, 1).flatten(0, 1)
    nothing = lists.new_zeros(len(flat), 0)
    if drawn is None:
        total, _ = _Scores.apply(flat, items, nothing, _NOTHING, chunk_bytes)
        total = total.view(queries.shape[1], -1).T
    else:
        besides = _Besides(-drawn.log_q, None, None, columns=_columns_of(lists, drawn.rows, len(items)))
        others, _ = _Scores.apply(flat, drawn.items.to(flat.dtype), nothing, besides, chunk_bytes)
        of_list = own.masked_fill(is_none, torch.finfo(own.dtype).min).logsumexp(2)
        total = torch.logaddexp(of_list, others.view(queries.shape[1], -1).T)
    return (total.unsqueeze(2) - own).masked_fill(is_none, 0.0)


def masked_softmax_loss(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    *,
    max_cosine: float,
    drawn: Drawn | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Return (B,): cross-entropy of each target among items that are not nearly the same; 0 without a target.

    -log( exp(q.v_t) / (exp(q.v_t) + sum_n exp(q.v_n)) ) over the items n other than t whose cosine with v_t
    is `max_cosine` at most: one that is nearly the target is no wrong answer. Source: the contrastive loss
    of RED-Rec's public code, 2025. All items are wrong answers, or drawn ones stand for them as in
    `sampled_softmax_loss`. Memory is bounded as in `full_softmax_loss`; what is masked has no gradient.

    Args:
        queries: (B, D).
        items: (N, D) of unit length.
        targets: (B,) int64 rows of `items`; -1 for none.
        max_cosine: of a wrong answer with the target.
        drawn: items that stand for all others.
        chunk_bytes: bound on the scores of a chunk; what suits the device where not given.
    """
    queries, items = _lowered(queries, items)
    of_targets = embedding(targets.clamp(min=0), items)
    own = (queries.float() * of_targets.float()).sum(1)
    others, rows, bias = items, torch.arange(len(items), device=items.device), None
    if drawn is not None:
        others, rows, bias = drawn.items.to(items.dtype), drawn.rows, -drawn.log_q
    besides = _Besides(bias, rows, targets, of_targets.detach(), max_cosine)
    nothing = targets.new_zeros(len(queries), 0)
    total, _ = _Scores.apply(queries, others, nothing, besides, chunk_bytes)
    return (torch.logaddexp(own, total) - own).masked_fill(targets < 0, 0.0)


def _lowered(queries: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the precision of autocast."""
    if torch.is_autocast_enabled(queries.device.type):
        lower = torch.get_autocast_dtype(queries.device.type)
        return queries.to(lower), items.to(lower)
    return queries, items


class _Besides(NamedTuple):
    """What decides a score beside the product; nothing of it learns."""

    bias: Tensor | None
    """(N,)"""
    rows: Tensor | None
    """(N,): which item a column is."""
    left_out: Tensor | None
    """(B,): the item whose columns a query leaves out."""
    of_targets: Tensor | None = None
    """(B, D): a query leaves out columns of a larger cosine with its own."""
    max_cosine: float = 1.0
    """The largest that is not left out."""
    columns: Tensor | None = None
    """(P, N) bool: the columns that query b leaves out besides, b modulo P."""

    def scores(self, queries: Tensor, items: Tensor, own: slice, part: slice) -> Tensor:
        """Return (b, n) float32 of a tile, in memory of its own."""
        scores = (queries[own] @ items[part].T).float()
        if self.bias is not None:
            scores += self.bias[part]
        if self.rows is not None and self.left_out is not None:
            scores.masked_fill_(self.rows[part] == self.left_out[own].unsqueeze(1), -torch.inf)
        if self.of_targets is not None:
            is_alike = self.of_targets[own] @ items[part].T > self.max_cosine
            scores.masked_fill_(is_alike, -torch.inf)
        if self.columns is not None:
            rows = torch.arange(own.start, own.start + len(scores), device=scores.device) % len(self.columns)
            scores.masked_fill_(self.columns[rows, part], -torch.inf)
        return scores


def _columns_of(lists: Tensor, rows: Tensor, num_items: int) -> Tensor:
    """Return (B, S) bool: which of the drawn rows (S,) are in a list (B, W), of items below `num_items`."""
    parts: list[Tensor] = []
    for some in lists.split(max(1, _LISTED_AT_ONCE // num_items)):
        is_listed = torch.zeros(len(some), num_items + 1, dtype=torch.bool, device=lists.device)
        is_listed.scatter_(1, some.where(some >= 0, num_items), value=True)
        parts.append(is_listed.index_select(1, rows))
    return torch.cat(parts) if parts else torch.zeros(0, len(rows), dtype=torch.bool, device=lists.device)


_NOTHING = _Besides(None, None, None)


@final
class _Scores(torch.autograd.Function):
    """log sum_n exp(q_b . i_n + bias_n) over the columns n not left out, and q_b . i_w of the targets w."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        items: Tensor,
        targets: Tensor,
        besides: _Besides,
        chunk_bytes: int | None,
    ) -> tuple[Tensor, Tensor]:
        """Return (B,) and (B, W) float32; of all scores only these are stored."""
        ctx.besides = besides
        ctx.bound = chunk_bytes or _CHUNK_BYTES.get(queries.device.type, _CHUNK_BYTES["cpu"])
        total = queries.new_full((len(queries),), -torch.inf, dtype=torch.float32)
        for own, part in _tiles(len(queries), len(items), ctx.bound):
            scores = besides.scores(queries, items, own, part)
            # Chunks are folded into a running log-normaliser, which does not overflow as sums of exp do.
            total[own] = torch.logaddexp(total[own], scores.logsumexp(1))
        ctx.save_for_backward(queries, items, targets, total)
        return total, torch.einsum("bd,bwd->bw", queries.float(), items[targets.clamp(min=0)].float())

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Send the gradients to queries and items, with the scores computed once more."""
        queries, items, targets, total = ctx.saved_tensors
        weights, of_targets = grads[0].float().unsqueeze(1), grads[1].float()
        # Where every column is left out there is nothing to share, and exp(-inf + inf) would be no number.
        level = total.masked_fill(total == -torch.inf, 0.0).unsqueeze(1)
        rows = targets.clamp(min=0)
        to_queries = torch.einsum("bw,bwd->bd", of_targets, items[rows].float())
        # float32 under autocast, too: the parts of many tiles add up, and small ones would get lost.
        to_items = torch.zeros_like(items, dtype=torch.float32)
        for own, part in _tiles(len(queries), len(items), ctx.bound):
            scores = ctx.besides.scores(queries, items, own, part)
            # exp(score - log-normaliser), the softmax, is the derivative of the log-normaliser by each score.
            shares = scores.sub_(level[own]).exp_().mul_(weights[own]).to(items.dtype)
            to_queries[own] += shares @ items[part]
            to_items[part] += shares.T @ queries[own]
        pulled = of_targets.unsqueeze(2) * queries.float().unsqueeze(1)
        # Targets repeat within a batch: assigning by index would keep one gradient of each.
        to_items.index_add_(0, rows.flatten(), pulled.flatten(0, 1))
        return to_queries.to(queries.dtype), to_items.to(items.dtype), None, None, None


def _tiles(num_queries: int, num_items: int, bound: int) -> Iterator[tuple[slice, slice]]:
    """Yield stretches of queries with stretches of items, whose scores take no more than the bound."""
    height = max(1, min(_QUERIES_AT_ONCE, num_queries))
    # 4 bytes a score: they are float32 whatever the products are computed in.
    width = max(1, bound // (4 * height))
    for first in range(0, num_queries, height):
        for start in range(0, num_items, width):
            yield slice(first, first + height), slice(start, start + width)
