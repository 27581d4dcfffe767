"""A frozen rotation."""

from typing import final

import torch
from torch import Tensor, nn


@final
class Rotation(nn.Module):
    """y = x Q, and x_hat = y Q^T is the way back. Widths (..., in_dim) to (..., out_dim)."""

    matrix: Tensor

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(in_dim, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Rotate."""
        return x @ self.matrix
