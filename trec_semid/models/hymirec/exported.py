"""HyMiRec's two halves as a program over what it keeps of every item.

Legend: B users, L longest history, R recent items, M interests, D width.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from trec_semid.models.exported import HistoryProgram
from trec_semid.models.hymirec.light_half import LightHalf
from trec_semid.models.hymirec.refined_half import RefinedHalf, recent_places


@final
class HymirecProgram(HistoryProgram):
    """Interests of whole histories; the first token of an item is read in full, the second by its codes."""

    outputs = ("vectors",)

    def __init__(self, light: LightHalf | None, refined: RefinedHalf, log_scale: nn.Parameter) -> None:
        super().__init__()
        self.light, self.refined, self.log_scale = light, refined, log_scale

    def forward(self, histories: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """See `HistoryProgram`: (B, M, D) of (B, L, 2, D), or of (B, L, 1, D) without a light half."""
        in_full = histories[:, :, 0]
        coarse = in_full.new_zeros(in_full.shape[0], 0, in_full.shape[2])
        if self.light is not None:
            coarse = self.light.of_cells(histories[:, :, 1], lengths)
        recent = recent_places(lengths, self.refined.num_recent)
        users = torch.arange(lengths.shape[0], device=lengths.device).unsqueeze(1)
        # An index past a history that is shorter than what is read would be one of another user.
        items = in_full[users, recent.places.clamp(max=histories.shape[1] - 1)]
        interests = self.refined(items, recent.is_there, coarse)
        return (self.log_scale.exp() * normalize(interests, dim=-1),)
