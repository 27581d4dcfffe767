"""Chained heads: a code of the next item is predicted from the state and the codes before it.

Legend: P places that predict, W targets a place, R positions, F facets, L levels of a facet (R = F L),
K codes, B users, D width.
"""

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, log_softmax, normalize, silu

from trec_semid.core.errors import ConfigError
from trec_semid.layers.full_softmax import full_softmax_loss
from trec_semid.models.heads.beams import Beams, NextLogProbs
from trec_semid.models.heads.code_heads import CodeHeads


@final
class ChainedHeads(CodeHeads):
    """p(c_1 .. c_R | u) = prod_r p(c_r | u, s_r), a softmax over k of cos(q_r, E_rk) / T.

    q_r = u + silu(W_r [u ; s_r]), s_r = sqrt(D) sum of E_r',c_r' / |E_r',c_r'| over the codes before r of r's
    facet: the R positions are F facets of L levels each, facet after facet; levels are chained, facets
    independent given u. F = 1 chains all codes; with F = R, or the weights of s_r at 0, these are
    `IndependentHeads`.

    In training the codes before r are the target's (teacher forcing), so all positions are learnt at once;
    decoding takes a small product a position and beam. Source: the factorisation by the chain rule is
    TIGER's (Recommender Systems with Generative Retrieval, 2023), the queries are RPG's (KDD 2025), facets
    are AsymRec's targets (2026). That one layer stands for a decoder, and a sum for what it has said, is
    ours.
    """

    def __init__(self, num_positions: int, dim: int, temperature: float, *, num_facets: int = 1) -> None:
        """Draw the weights: all 0, so that every head reads the state itself at the start.

        Args:
            num_positions: R.
            dim: D.
            temperature: divides cosines.
            num_facets: F.

        Raises:
            ConfigError: facets of unequal length.
        """
        super().__init__()
        if num_facets < 1 or num_positions % num_facets:
            raise ConfigError(
                f"facets: {num_positions} codes make no {num_facets} facets of one length. Set a number that "
                f"divides {num_positions}."
            )
        self.scale, self.num_facets = 1.0 / temperature, num_facets
        self.num_levels = num_positions // num_facets
        self.weight = nn.Parameter(torch.zeros(num_positions, dim, dim))
        self.bias = nn.Parameter(torch.zeros(num_positions, dim))
        self.prefix_weight: nn.Parameter | None = None
        if not self.is_independent:
            # The first level of a facet has no prefix, and no weights for it.
            self.prefix_weight = nn.Parameter(torch.zeros(num_facets, self.num_levels - 1, dim, dim))

    @property
    def is_independent(self) -> bool:
        """See `CodeHeads`: whether facets have one level."""
        return self.num_levels == 1

    def loss(self, states: Tensor, tables: Tensor, codes: Tensor) -> Tensor:
        """Return (P, W) of states (P, D), see `CodeHeads`."""
        unit, shape = normalize(tables, dim=-1), codes.shape[:2]
        told = codes.clamp(min=0)
        each: list[Tensor] = []
        prefix: Tensor | None = None
        for position, rows in enumerate(unit):
            if position % self.num_levels == 0:
                # Nothing is told yet, so all targets of a place are asked of one query.
                prefix = None
                query, targets = self._query(position, states, None), codes[:, :, position]
            else:
                before = embedding(told[:, :, position - 1], unit[position - 1])
                prefix = before if prefix is None else prefix + before
                query = self._query(position, states.unsqueeze(1), prefix).flatten(0, 1)
                targets = codes[:, :, position].flatten()
            each.append(full_softmax_loss(query, rows, targets, scale=self.scale).view(shape))
        return torch.stack(each).mean(0)

    def next_log_probs(self, states: Tensor, tables: Tensor) -> NextLogProbs:
        """Return what a beam search asks of users (B, D), see `CodeHeads`."""
        unit = normalize(tables, dim=-1)

        def ask(position: int, beams: Beams) -> Tensor:
            """Return (B, W, K + 1), or (B, 1, K + 1) of the first level of a facet, which knows no prefix."""
            prefix: Tensor | None = None
            for before in range(position - position % self.num_levels, position):
                row = embedding(beams.codes[:, :, before], unit[before])
                prefix = row if prefix is None else prefix + row
            query = self._query(position, states.unsqueeze(1), prefix)
            return log_softmax((query @ unit[position].T * self.scale).float(), dim=-1)

        return ask

    def log_probs(self, states: Tensor, tables: Tensor) -> Tensor:
        """Return (P, R, K + 1) of states (P, D), see `CodeHeads`."""
        assert self.is_independent, "facets of one level"
        unit = normalize(tables, dim=-1)
        each = [self._query(r, states, None) @ rows.T * self.scale for r, rows in enumerate(unit)]
        return log_softmax(torch.stack(each, dim=1).float(), dim=-1)

    def _query(self, position: int, states: Tensor, prefix: Tensor | None) -> Tensor:
        """Return q_r of unit length, as states (..., D) and sums of unit rows (..., D) broadcast."""
        moved = states @ self.weight[position] + self.bias[position]
        if prefix is not None and self.prefix_weight is not None:
            facet, level = divmod(position, self.num_levels)
            # States are of length sqrt(D) about, so what is told counts like what is read.
            told = prefix * math.sqrt(states.shape[-1])
            moved = moved + told @ self.prefix_weight[facet, level - 1]
        return normalize(states + silu(moved), dim=-1)
