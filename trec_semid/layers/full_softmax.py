"""Softmax cross-entropy over all items of a catalogue, without a tensor of all scores.

Legend: B queries, W targets a query at most, N items, D width.
"""

from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_BYTES = {"cpu": 2 * 2**20, "cuda": 512 * 2**20}
"""Bound on one (B, chunk) tensor of scores; on CPU it stays in a core's cache, which is twice as fast."""


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
    bound = chunk_bytes or _CHUNK_BYTES.get(queries.device.type, _CHUNK_BYTES["cpu"])
    chunk = max(1, bound // (4 * max(len(queries), 1)))
    queries = queries * scale
    if torch.is_autocast_enabled(queries.device.type):
        lower = torch.get_autocast_dtype(queries.device.type)
        queries, items = queries.to(lower), items.to(lower)
    return _FullSoftmax.apply(queries, items, targets, chunk)


@final
class _FullSoftmax(torch.autograd.Function):
    """Forward and backward of `full_softmax_loss`, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, items: Tensor, targets: Tensor, chunk: int) -> Tensor:
        """Return the losses (B, W); of all scores only each query's log-normaliser is kept."""
        total = queries.new_full((len(queries),), float("-inf"), dtype=torch.float32)
        for part in items.split(chunk):
            total = torch.logaddexp(total, (queries @ part.T).float().logsumexp(1))
        wide = targets.view(len(queries), -1) if len(queries) else targets.view(0, 1)
        own = torch.einsum("bd,bwd->bw", queries, items[wide.clamp(min=0)]).float()
        ctx.save_for_backward(queries, items, wide, total)
        ctx.chunk = chunk
        return (total.unsqueeze(1) - own).masked_fill(wide < 0, 0.0).view(targets.shape)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Send the gradient to queries and items, with the scores made once more."""
        queries, items, targets, total = ctx.saved_tensors
        each = grads[0].view(targets.shape).float().masked_fill(targets < 0, 0.0)
        rows, weights = targets.clamp(min=0), each.sum(1, keepdim=True)
        to_queries = -torch.einsum("bw,bwd->bd", each, items[rows].float())
        to_items = torch.zeros_like(items, dtype=torch.float32)
        for start in range(0, len(items), ctx.chunk):
            part = items[start : start + ctx.chunk]
            scores = (queries @ part.T).float()
            shares = scores.sub_(total.unsqueeze(1)).exp_().mul_(weights).to(part.dtype)
            to_queries += shares @ part
            to_items[start : start + ctx.chunk] = shares.T @ queries
        pulled = each.unsqueeze(2) * queries.float().unsqueeze(1)
        to_items.index_add_(0, rows.flatten(), -pulled.flatten(0, 1))
        return to_queries.to(queries.dtype), to_items.to(items.dtype), None, None
