"""Independent heads: every code of the next item is predicted from the state alone.

Legend: P places that predict, W targets a place, R positions, K codes, D width.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize, silu

from trec_semid.layers.full_softmax import full_softmax_loss
from trec_semid.models.heads.beams import NextLogProbs, parallel_heads
from trec_semid.models.heads.code_heads import CodeHeads


@final
class IndependentHeads(CodeHeads):
    """p(c_r = k | u) = softmax_k(cos(q_r, E_rk) / T), q_r = u + silu(W_r u), all positions at once.

    The codes of the next item are predicted in parallel, as of one set: score(item) = sum_r log p(c_r).
    E are the rows of the code tables, those that stand for items' codes in the input as well. W_r start at
    0. Source: RPG: Generating Long Semantic IDs in Parallel, KDD 2025, whose heads these are; MMQ calls
    its base a multi-token prediction model of this kind.
    """

    def __init__(self, num_positions: int, dim: int, temperature: float) -> None:
        super().__init__()
        self.scale = 1.0 / temperature
        # With both at 0 silu adds 0: at the start every head reads the state itself, q_r = u.
        self.weight = nn.Parameter(torch.zeros(num_positions, dim, dim))
        self.bias = nn.Parameter(torch.zeros(num_positions, 1, dim))

    @property
    def is_independent(self) -> bool:
        """See `CodeHeads`: always."""
        return True

    def forward(self, states: Tensor) -> Tensor:
        """Return q (R, P, D), of unit length, from (P, D)."""
        moved = silu(torch.baddbmm(self.bias, states.expand(len(self.weight), -1, -1), self.weight))
        return normalize(states + moved, dim=-1)

    def loss(self, states: Tensor, tables: Tensor, codes: Tensor) -> Tensor:
        """Return (P, W) of states (P, D), see `CodeHeads`."""
        queries, rows = self(states), normalize(tables, dim=-1)
        each = [
            full_softmax_loss(query, row, target, scale=self.scale)
            for query, row, target in zip(queries, rows, codes.unbind(2), strict=True)
        ]
        return torch.stack(each).mean(0)

    def next_log_probs(self, states: Tensor, tables: Tensor) -> NextLogProbs:
        """Return what a beam search asks of users (B, D): all is predicted already, whatever the prefix."""
        return parallel_heads(self.log_probs(states, tables).unbind(1))

    def log_probs(self, states: Tensor, tables: Tensor) -> Tensor:
        """Return (P, R, K + 1) of states (P, D), see `CodeHeads`."""
        scores = torch.bmm(self(states), normalize(tables, dim=-1).mT) * self.scale
        return log_softmax(scores.float(), dim=-1).transpose(0, 1)
