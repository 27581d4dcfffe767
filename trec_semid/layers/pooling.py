"""Choosing and adding the vectors of neighbouring features."""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn


class Piece(NamedTuple):
    """Features `first` to `last - 1`: side by side, or added into one vector."""

    first: int
    last: int
    is_summed: bool


@final
class PickPieces(nn.Module):
    """Puts pieces of (B, F * dim) vectors side by side: (B, out_dim)."""

    def __init__(self, pieces: Sequence[Piece], dim: int) -> None:
        super().__init__()
        self.pieces, self.dim = tuple(pieces), dim
        self.out_dim = dim * sum(1 if piece.is_summed else piece.last - piece.first for piece in pieces)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the pieces of (B, F * dim) vectors."""
        picked = [self._pick(vectors, piece) for piece in self.pieces]
        return picked[0] if len(picked) == 1 else torch.cat(picked, dim=1)

    def _pick(self, vectors: Tensor, piece: Piece) -> Tensor:
        part = vectors[:, piece.first * self.dim : piece.last * self.dim]
        return part.unflatten(1, (-1, self.dim)).sum(dim=1) if piece.is_summed else part
