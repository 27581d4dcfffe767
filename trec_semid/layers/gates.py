"""The gate unit of PEPNet."""

from typing import final

import torch
from torch import Tensor, nn


@final
class GateUnit(nn.Module):
    """Element-wise gates in (0, gamma), near gamma / 2 at the start.

    delta = gamma * sigmoid(W' relu(W x + b) + b').
    Source: Chang et al., "PEPNet: Parameter and Embedding Personalized Network for Infusing with
    Personalized Prior Information", KDD 2023, Gate Neural Unit. Input (..., in_dim), output (..., out_dim).
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, *, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma
        self.inner = nn.Linear(in_dim, hidden_dim)
        self.outer = nn.Linear(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gates of (..., in_dim) inputs."""
        return self.open(torch.relu(self.inner(x)))

    def open(self, read: Tensor) -> Tensor:
        """Return the gates of (..., hidden_dim) what the inner layer has read."""
        return self.gamma * torch.sigmoid(self.outer(read))
