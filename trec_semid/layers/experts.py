"""Experts that run side by side, and the loss that keeps them different."""

import math
from typing import final

import torch
from torch import Tensor, nn


@final
class Experts(nn.Module):
    """E experts over the same input, in one matrix product: z_e = W_e x / sqrt(in_dim) + b_e.

    With a hidden width each expert is z_e = W'_e relu(W_e x / sqrt(in_dim) + b_e) + b'_e. MMQ
    (Multimodal Mixture-of-Quantization tokenization, 2025) eq 2-3; it names one matrix per expert, so
    one linear map is the default. Input (B, in_dim), output (B, E, out_dim).
    """

    def __init__(self, in_dim: int, out_dim: int, num_experts: int, *, hidden_dim: int | None = None) -> None:
        super().__init__()
        self.out_dim, first = out_dim, hidden_dim or out_dim
        self.weight = nn.Parameter(_uniform(num_experts, in_dim, first, fan_in=1))
        self.bias = nn.Parameter(_uniform(num_experts, first, fan_in=in_dim))
        self.last_weight: nn.Parameter | None = None
        self.last_bias: nn.Parameter | None = None
        if hidden_dim:
            self.last_weight = nn.Parameter(_uniform(num_experts, first, out_dim, fan_in=first))
            self.last_bias = nn.Parameter(_uniform(num_experts, out_dim, fan_in=first))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim) to (B, E, out_dim)."""
        num_experts, in_dim, first = self.weight.shape
        if not num_experts:
            return x.new_zeros(len(x), 0, self.out_dim)
        # 1 / sqrt(in_dim) stands outside the weights, so that a step of Adam moves wide and narrow
        # inputs' experts alike. All experts side by side are one matrix, and one product.
        side_by_side = torch.cat((self.weight / in_dim**0.5).unbind(), dim=1)
        hidden = torch.addmm(self.bias.flatten(), x, side_by_side).unflatten(1, (num_experts, first))
        if self.last_weight is None or self.last_bias is None:
            return hidden
        last = torch.relu(hidden).transpose(0, 1)
        return torch.baddbmm(self.last_bias.unsqueeze(1), last, self.last_weight).transpose(0, 1)

    def overlap(self) -> Tensor:
        """Return () how alike the experts' (first) matrices are, see `weight_overlap`."""
        return weight_overlap(self.weight)


def weight_overlap(weights: Tensor) -> Tensor:
    """Return || V V^T - I ||_F^2, rows of V being the experts' flattened weights at unit length.

    Zero exactly when all experts are orthogonal. MMQ eq 11-12.

    Args:
        weights: (E, ...) float.

    Returns:
        () float.
    """
    rows = weights.flatten(1)
    products = rows @ rows.T  # normalised after the product: E^2 numbers instead of every weight
    lengths = products.diagonal().clamp(min=1e-24).sqrt()
    cosines = products / torch.outer(lengths, lengths)
    return (cosines - torch.eye(len(rows), device=rows.device, dtype=rows.dtype)).square().sum()


def output_overlap(latents: Tensor) -> Tensor:
    """Return the mean over pairs of positions r < k of |corr(z_r, z_k)|_F^2 / D, over the items of a batch.

    Zero where no dimension of one position is correlated with one of another. Orthogonal weights do not see
    to that: W and a rotation of W partition items alike, and inputs are correlated anyway. Independent
    positions have D / B by chance.

    Args:
        latents: (B, R, D).

    Returns:
        () float; 0 of one position, or of less than two items.
    """
    num_items, num_positions, dim = latents.shape
    if num_items < 2 or num_positions < 2:
        return latents.sum() * 0.0
    centred = latents - latents.mean(0)
    flat = (centred / centred.square().mean(0).clamp(min=1e-12).sqrt()).flatten(1)
    squares = (flat.T @ flat / num_items).square().unflatten(0, (num_positions, dim)).unflatten(2, (-1, dim))
    own = torch.ones(num_positions, num_positions, device=latents.device).triu(1)
    return (squares.sum((1, 3)) * own).sum() / (dim * own.sum())


def _uniform(*shape: int, fan_in: int) -> Tensor:
    bound = 1.0 / math.sqrt(fan_in)
    return torch.empty(*shape).uniform_(-bound, bound)
