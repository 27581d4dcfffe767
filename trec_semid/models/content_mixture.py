"""Content of an item as a gated mixture of experts over the raw vector, instead of one linear map.

Legend: U listed items, M modalities, C width of one of them, E experts, H hidden width, D width of tokens.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast, final

import torch
from torch import Tensor, nn

from trec_semid.layers.experts import Experts
from trec_semid.tokenizers.inputs.contents import Standardised


class MixtureSizes(NamedTuple):
    """Sizes of the mixture of each modality."""

    num_experts: int
    hidden_dim: int


@final
class MixedContent(nn.Module):
    """h = sum_e g_e(x) MLP_e(x), g = softmax(W_g x / sqrt(C) + b): (U, C) to (U, 1, D), a mixture a modality.

    MLP_e(x) = W'_e relu(W_e x / sqrt(C) + b_e) + b'_e; an absent modality is a learnt vector. Gates start
    equal, and last weights such that tokens of a standardised vector are about normal(0, std^2), as rows of
    tables are. Source: the input side (MSP) of AsymRec (2026), whose sizes and start are not public.
    """

    def __init__(self, dims: Mapping[str, int], dim: int, std: float, sizes: MixtureSizes) -> None:
        """Draw the weights.

        Args:
            dims: modality to width.
            dim: D.
            std: of a coordinate of a token at the start.
            sizes: of each mixture.
        """
        super().__init__()
        self.widths, (num_experts, hidden) = tuple(dims.values()), sizes
        experts = [Experts(width, dim, num_experts, hidden_dim=hidden) for width in self.widths]
        gates = [nn.Linear(width, num_experts) for width in self.widths]
        for each, gate in zip(experts, gates, strict=True):
            assert each.last_weight is not None, "experts of two layers"
            assert each.last_bias is not None, "experts of two layers"
            # First weights are uniform in (-1, 1), so a unit before relu has variance 1/3, and a mean square
            # of 1/6 after it; E experts are averaged at the start.
            nn.init.normal_(each.last_weight, std=std * math.sqrt(6 * num_experts / hidden))
            for zeros in (each.last_bias, gate.weight, gate.bias):
                nn.init.zeros_(zeros)
        self.experts, self.gates = nn.ModuleList(experts), nn.ModuleList(gates)
        self.absent = nn.Parameter(torch.zeros(len(self.widths), dim))

    def forward(self, contents: Standardised) -> Tensor:
        """Return (U, M, D)."""
        parts = contents.x.split(self.widths, dim=1)
        experts = cast(Iterable[Experts], self.experts)
        gates = cast(Iterable[nn.Linear], self.gates)
        mixed: list[Tensor] = []
        for part, each, gate in zip(parts, experts, gates, strict=True):
            shares = torch.softmax(gate(part / math.sqrt(part.shape[1])), dim=1)
            mixed.append(torch.bmm(shares.unsqueeze(1), each(part)).squeeze(1))
        return torch.where(contents.modalities.unsqueeze(2), torch.stack(mixed, dim=1), self.absent)
