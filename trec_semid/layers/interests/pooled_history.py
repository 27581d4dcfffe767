"""Several questions of a place, each answered by a mean of what was read up to it.

Legend: B rows, T places that ask, n questions a place, L memory places, D width, H width of a question.
"""

from typing import final

import torch
from torch import Tensor, nn


@final
class PooledHistory(nn.Module):
    """u_q = sum_s a_qs x_s, a_q = softmax over s of q . tanh(W (x_s + pos_s)).

    The attention of ComiRec-SA whose heads are given, and are not the same for all: there q_1 .. q_M are the
    rows of a learnt matrix. Answers are means of items, so they lie among these from the first step. Source:
    Cen et al., "Controllable Multi-Interest Framework for Recommendation", KDD 2020, section 3.2.
    """

    def __init__(self, dim: int, hidden_dim: int, max_len: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(max_len, dim) * 0.02)
        self.hidden = nn.Linear(dim, hidden_dim)
        nn.init.xavier_uniform_(self.hidden.weight)
        nn.init.zeros_(self.hidden.bias)

    def forward(self, asked: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Return (B, T, n, D).

        Args:
            asked: (B, T, n, H).
            memory: (B, L, D).
            mask: (T, L) or (B, T, L) bool, True where a place may look; it may look somewhere.
        """
        keys = torch.tanh(self.hidden(memory + self.places[: memory.shape[1]]))
        scores = torch.bmm(asked.flatten(1, 2), keys.mT).unflatten(1, asked.shape[1:3])
        mask = mask.unsqueeze(0) if mask.dim() == 2 else mask
        shares = scores.masked_fill(~mask.unsqueeze(2), -torch.inf).softmax(3)
        return torch.bmm(shares.flatten(1, 2), memory).unflatten(1, asked.shape[1:3])
