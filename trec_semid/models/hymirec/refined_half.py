"""The refined half: recent items in full and coarse interests, read by a causal model, answer learnt queries.

Legend: B users, L longest history, R recent items, Q coarse interests, M interests, S = R + Q + M, D width.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from trec_semid.layers.attention import Transformer, TransformerConfig, block_causal_mask
from trec_semid.layers.dropout import Dropout


class Backbone(nn.Module, ABC):
    """Reads sequences of S vectors, each from those before it that are there."""

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor, first_position: int) -> Tensor:
        """Return (B, S, D).

        Args:
            x: (B, S, D).
            mask: (B, 1, S, S) bool, True where a token may look; every token looks at itself.
            first_position: of the first token. Later ones follow; a sequence ends at the same position
                whatever its length.
        """


@final
class TransformerBackbone(Backbone):
    """The transformer of all other retrievers, with learnt positions."""

    def __init__(self, dim: int, length: int, config: TransformerConfig) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(length, dim) * 0.02)
        self.transformer = Transformer(dim, config)

    def forward(self, x: Tensor, mask: Tensor, first_position: int) -> Tensor:
        """Return (B, S, D)."""
        return self.transformer(x + self.places[first_position:], mask)


class Recent(NamedTuple):
    """The last items of histories, aligned at the end."""

    places: Tensor
    """(B, R) int64: where they stand in the history; 0 where there is none."""
    is_there: Tensor
    """(B, R) bool; the first ones are missing where a history is shorter."""


def recent_places(lengths: Tensor, num_recent: int) -> Recent:
    """Return where the last R items of histories of (B,) lengths stand, as (B, R)."""
    places = lengths.unsqueeze(1) - num_recent + torch.arange(num_recent, device=lengths.device)
    return Recent(places.clamp(min=0), places >= 0)


@final
class RefinedHalf(nn.Module):
    """Reads [recent items; coarse interests; queries] causally; what stands at the queries are the interests.

    Recent items are read as SASRec reads them, sqrt(D)-fold, and end at the same position for all users, so
    that a position tells how long ago. The layout is HyMiRec's and RED-Rec's (2025); which parts their
    attention hides from each other is not public, here every token sees those before it.
    """

    def __init__(
        self, backbone: Backbone, dim: int, num_interests: int, num_recent: int, dropout: float
    ) -> None:
        """Draw the queries.

        Args:
            backbone: reads sequences of up to `num_recent` items, coarse interests and queries.
            dim: D.
            num_interests: M.
            num_recent: R at most.
            dropout: of what is read of items.
        """
        super().__init__()
        self.num_recent, self.scale = num_recent, math.sqrt(dim)
        self.queries = nn.Parameter(torch.randn(num_interests, dim) * 0.02)
        self.drop, self.backbone = Dropout(dropout), backbone

    def forward(self, items: Tensor, is_there: Tensor, coarse: Tensor) -> Tensor:
        """Return interests (B, M, D).

        Args:
            items: (B, R, D), the last ones; R may be less than for other batches.
            is_there: (B, R) bool.
            coarse: (B, Q, D), Q of none where there is no light half.
        """
        num_users, num_read = is_there.shape
        queries = self.queries.expand(num_users, -1, -1)
        x = torch.cat([self.drop(self.scale * items), coarse, queries], dim=1)
        always = is_there.new_ones(num_users, x.shape[1] - num_read)
        length = x.shape[1]
        causal = block_causal_mask(length, 1, x.device)
        itself = torch.eye(length, dtype=torch.bool, device=x.device)
        # A missing item looks at itself: a token that looks nowhere would be no number.
        mask = (causal & torch.cat([is_there, always], dim=1).unsqueeze(1)) | itself
        states = self.backbone(x, mask.unsqueeze(1), self.num_recent - num_read)
        return states[:, -len(self.queries) :]
