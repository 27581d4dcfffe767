"""Residual quantisation: each level codes what the levels above left over.

Legend: B points, L levels, K codes, D width.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from trec_semid.layers.quantize import nearest_codeword


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
