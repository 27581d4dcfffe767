"""Residual quantisation, by distance or by direction: each level codes what the levels above left over.

Legend: B points, L levels, K codes, D width.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from trec_semid.layers.quantize import best_codes, nearest_codeword


class Level(NamedTuple):
    """One level's choice."""

    left: Tensor
    """(B, D): what the levels above left over, with the gradient of the points."""
    codes: Tensor
    """(B,) int64."""


def residual_levels(points: Tensor, codebooks: Tensor) -> Iterator[Level]:
    """Yield r_l = z - sum_{k<l} sg(C_k[c_k]) and c_l = argmin_j ||r_l - C_l,j||^2, level by level.

    Args:
        points: (B, D).
        codebooks: (L, K, D).
    """
    left = points
    # Detached: otherwise the loss of a level would move the codewords of all levels above it.
    for codebook in codebooks.detach():
        codes = nearest_codeword(left.detach(), codebook)
        yield Level(left, codes)
        left = left - codebook[codes]


def residual_codes(points: Tensor, codebooks: Tensor) -> Tensor:
    """Return the codes (B, L) int64 of points (B, D)."""
    return torch.stack([level.codes for level in residual_levels(points, codebooks)], dim=1)


class Projected(NamedTuple):
    """Codes of points by direction, and how far along each code's direction a point lies."""

    codes: Tensor
    """(B, L) int64."""
    coefficients: Tensor
    """(B, L) float."""
    left: Tensor
    """(B, D): what all levels leave over."""


def project_levels(points: Tensor, codebooks: Tensor, codes: Tensor | None = None) -> Projected:
    """Return b_l = argmax_j cos(r_l, C_l,j), a_l = r_l . c and r_{l+1} = r_l - a_l c, where c = C_l[b_l].

    What is left is orthogonal to the code it was projected on, so |r_{l+1}|^2 = |r_l|^2 - a_l^2.
    Source: HyMiRec, 2025, its cosine-similarity residual codebook.

    Args:
        points: (B, D).
        codebooks: (L, K, D) at unit length, which makes r . c / |c|^2 the product alone.
        codes: (B, L) to project on; those of the equation where not given.
    """
    left, chosen, coefficients = points, [], []
    for level, codebook in enumerate(codebooks):
        # The length of what is left does not move its argmax.
        own = best_codes(left @ codebook.T) if codes is None else codes[:, level]
        directions = codebook[own]
        along = (left * directions).sum(1)
        left = left - along.unsqueeze(1) * directions
        chosen.append(own)
        coefficients.append(along)
    return Projected(torch.stack(chosen, dim=1), torch.stack(coefficients, dim=1), left)
