"""The differentiable index: the hard code forward, the softmax over all codes backward.

Legend: B items, R positions, K codes of a codebook, D latent width, V width of what is looked up.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from trec_semid.layers.quantize import Similarity, best_codes

_CHUNK_BYTES = {"cpu": 2 * 2**20, "cuda": 256 * 2**20}
"""Bound on one (R, rows, K) tensor of scores, a few of which live at a time: on a CPU they stay in cache."""


class GumbelNoise(NamedTuple):
    """Noise on the scores, drawn again from its seed in backward instead of being stored."""

    scale: float
    seed: int


class Picked(NamedTuple):
    """What was looked up."""

    vectors: Tensor
    """(B, R, V): values[r, codes[b, r]], with the gradient of the soft index."""
    codes: Tensor
    """(B, R) int64."""


def soft_lookup(
    latents: Tensor,
    codebooks: Tensor,
    values: Tensor,
    *,
    similarity: Similarity,
    temperature: Tensor | float,
    present: Tensor | None = None,
    noise: GumbelNoise | None = None,
    chunk_bytes: int | None = None,
) -> Picked:
    """Look up each latent's code so that the choice itself gets a gradient.

    p = similarity(z, C) / temperature, soft = softmax(p), hard = onehot(argmax p),
    ind = soft + sg(hard - soft), out = ind E: d loss / d soft = (d loss / d out) E^T over all K codes,
    d loss / d E = hard^T (d loss / d out). Source: MMQ: Multimodal Mixture-of-Quantization
    tokenization, 2025, eq 15-18; the Euclidean similarity is -|z - C_j|^2. With noise, p + scale * g
    with g ~ Gumbel(0, 1) takes the place of p in both.

    Scores exist for a chunk of items at a time and are computed again in backward: memory beyond inputs
    and outputs does not grow with B, and not with K either until a single item fills a chunk.

    Args:
        latents: (B, R, D).
        codebooks: (R, K, D).
        values: (R, K, V), or (R, K + 1, V) with `present`.
        similarity: how a code is chosen.
        temperature: a number, or (R,) one for each position; small is sharp; cosines lie in [-1, 1].
        present: (B, R) bool. Where given, values has K + 1 rows, and an absent latent gets the last one
            and code K, without a gradient to the latent and the codebook.
        noise: none where not given.
        chunk_bytes: bound on the scores of a chunk; what suits the device where not given.
    """
    temperatures = torch.as_tensor(temperature, dtype=latents.dtype, device=latents.device)
    sharpness = (1 / temperatures).reshape(-1, 1, 1)
    # The temperature is folded into queries and bias, so that one form of score serves both similarities.
    queries, keys, scale, bias = _scored_by(latents, codebooks, similarity, sharpness)
    rows = _chunk_rows(codebooks, chunk_bytes)
    scores = _Scores(scale, noise, rows, None if present is None else ~present.T)
    vectors, codes = _SoftLookup.apply(queries, keys, bias, values, scores)
    return Picked(vectors.transpose(0, 1), codes.T)


@torch.no_grad()
def effective_codes(
    latents: Tensor,
    codebooks: Tensor,
    *,
    similarity: Similarity,
    temperature: Tensor | float,
    present: Tensor | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Return (R,): exp of the entropy of an item's soft index, a mean over the items that have the position.

    Args:
        latents: (B, R, D).
        codebooks: (R, K, D).
        similarity: how a code is chosen.
        temperature: a number, or (R,).
        present: (B, R) bool; all where not given. A position that no item has counts one code.
        chunk_bytes: as of `soft_lookup`.
    """
    temperatures = torch.as_tensor(temperature, dtype=latents.dtype, device=latents.device)
    queries, keys, scale, bias = _scored_by(
        latents, codebooks, similarity, (1 / temperatures).reshape(-1, 1, 1)
    )
    scores = _Scores(scale, None, _chunk_rows(codebooks, chunk_bytes))
    counts = torch.empty(queries.shape[:2], device=latents.device)
    for rows, scored in scores.chunks(queries, keys, bias):
        log_probs = scored.log_softmax(-1)
        # A code of probability 0 adds nothing, and 0 times -inf is no number.
        counts[:, rows] = -(log_probs.exp() * log_probs).nan_to_num(0.0).sum(-1)
    counts = counts.exp()
    if present is None:
        return counts.mean(1) if len(latents) else torch.ones(len(counts), device=latents.device)
    total = present.T.sum(1)
    sums = counts.masked_fill(~present.T, 0.0).sum(1)
    return torch.where(total > 0, sums / total.clamp(min=1), 1.0)


def _chunk_rows(codebooks: Tensor, chunk_bytes: int | None) -> int:
    bound = chunk_bytes or _CHUNK_BYTES.get(codebooks.device.type, _CHUNK_BYTES["cpu"])
    return max(1, bound // (4 * codebooks.shape[0] * codebooks.shape[1]))


def _scored_by(
    latents: Tensor, codebooks: Tensor, similarity: Similarity, sharpness: Tensor
) -> tuple[Tensor, Tensor, float, Tensor | None]:
    """Return queries (R, B, D), keys (R, K, D), scale and bias (R, 1, K): p = scale * q k^T + bias."""
    queries = latents.transpose(0, 1)
    if similarity == "cosine":
        return sharpness * normalize(queries, dim=-1), normalize(codebooks, dim=-1), 1.0, None
    # |z|^2 is the same for all codes: softmax and argmax do without it.
    return sharpness * queries, codebooks, 2.0, -sharpness * codebooks.square().sum(-1).unsqueeze(1)


class _Scores(NamedTuple):
    """How scores are computed, chunk by chunk and twice alike."""

    scale: float
    noise: GumbelNoise | None
    chunk_rows: int
    is_absent: Tensor | None = None
    """(R, B) bool."""

    def chunks(self, queries: Tensor, keys: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        """Yield stretches of items with their scores (R, rows, K)."""
        generator = None
        if self.noise:
            # Seeded anew at every pass, with chunks in the same order: backward sees the noise of forward.
            generator = torch.Generator(queries.device).manual_seed(self.noise.seed)
        for start in range(0, queries.shape[1], self.chunk_rows):
            rows = slice(start, start + self.chunk_rows)
            scores = torch.bmm(queries[:, rows], keys.mT).mul_(self.scale)
            if bias is not None:
                scores += bias
            if self.noise and generator is not None:
                uniform = torch.rand(scores.shape, generator=generator, device=scores.device)
                # The clamp keeps both logarithms finite: a uniform number may be 0.
                gumbel = uniform.clamp_(1e-9, 1 - 1e-7).log_().neg_().log_().neg_()
                scores += gumbel.mul_(self.noise.scale)
            yield rows, scores


class _SoftLookup(torch.autograd.Function):
    """(queries, keys, bias, values) to (vectors (R, B, V), codes (R, B))."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        bias: Tensor | None,
        values: Tensor,
        scores: _Scores,
    ) -> tuple[Tensor, Tensor]:
        """Choose codes and pick their values."""
        codes = torch.empty(queries.shape[:2], dtype=torch.int64, device=queries.device)
        for rows, scored in scores.chunks(queries, keys, bias):
            codes[:, rows] = best_codes(scored)
        if scores.is_absent is not None:
            codes.masked_fill_(scores.is_absent, keys.shape[1])
        ctx.save_for_backward(queries, keys, bias, values, codes)
        ctx.mark_non_differentiable(codes)
        ctx.scores = scores
        return values.flatten(0, 1)[_flat(codes, values.shape[1])], codes

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Send the gradient through the softmax over all codes, and to the rows that were picked."""
        queries, keys, bias, values, codes = ctx.saved_tensors
        grad, scores = grads[0].contiguous(), ctx.scores
        grad_queries, grad_keys = torch.empty_like(queries), torch.zeros_like(keys)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        # The row of 'missing', where there is one, is no choice of the softmax.
        choices = values[:, : keys.shape[1]].mT
        if any(ctx.needs_input_grad[:3]):
            for rows, scored in scores.chunks(queries, keys, bias):
                soft = torch.softmax(scored, dim=-1)
                of_rows = grad[:, rows]
                if scores.is_absent is not None:
                    of_rows = of_rows.masked_fill(scores.is_absent[:, rows].unsqueeze(2), 0.0)
                # d loss / d soft over all K codes, and then back through the softmax to the scores.
                through = torch.bmm(of_rows, choices)
                through = torch.ops.aten._softmax_backward_data(through, soft, -1, soft.dtype)
                grad_queries[:, rows] = torch.bmm(through, keys)
                grad_keys.baddbmm_(through.mT, queries[:, rows])
                if grad_bias is not None:
                    grad_bias += through.sum(1, keepdim=True)
        grad_values = torch.zeros_like(values)
        flat = _flat(codes, values.shape[1]).flatten()
        grad_values.flatten(0, 1).index_add_(0, flat, grad.flatten(0, 1))
        # Scores are scale * q k^T + bias: queries and keys get the factor once, here, and the bias has none.
        grads_in = (grad_queries.mul_(scores.scale), grad_keys.mul_(scores.scale), grad_bias, grad_values)
        return (*grads_in, None)


def _flat(codes: Tensor, num_codes: int) -> Tensor:
    """Return (R, B) rows of values laid out (R * K, V)."""
    return codes + torch.arange(len(codes), device=codes.device).unsqueeze(1) * num_codes
