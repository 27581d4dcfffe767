"""Exact scores of items from parallel heads: the sum of log-probabilities of an item's codes.

score(b, i) = sum over positions r of log p_r(codes[i, r] | user b). Source: Generating Long Semantic IDs in
Parallel for Recommendation (RPG), 2025: positions are independent given the user.

Legend: B users, N items, n of a stretch, R positions, K codes.
"""

from typing import final

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from trec_semid.core.shapes import expect_shape


@final
class CodeScores:
    """Scores of any stretch of a catalogue for one batch of users; memory does not grow with N.

    The heads are laid out as one table with a row for each code of each position and a column for each
    user: then an item is a bag of R rows, and one fused kernel reads and sums them. On a CPU that takes a
    fraction of what gathering takes (position by position, or by distinct pairs of positions), and of a
    product with one-hot items.
    """

    def __init__(self, log_probs: Tensor, codes: Tensor) -> None:
        """Lay the heads out.

        Args:
            log_probs: (B, R, K) of all positions.
            codes: (N, R) of all items, each below K.

        Raises:
            ShapeError: not one head a position.
        """
        expect_shape(codes, "N R", "codes")
        expect_shape(log_probs, "B R K", "log-probabilities", R=codes.shape[1])
        self._codes = codes
        self._table = log_probs.float().flatten(1).T.contiguous()
        positions = torch.arange(codes.shape[1], device=log_probs.device, dtype=torch.int32)
        self._firsts = positions * log_probs.shape[2]

    def of(self, items: slice) -> Tensor:
        """Return (B, num_items) float32, consecutive items, not contiguous: users of one are neighbours."""
        rows = self._codes[items].to(torch.int32) + self._firsts
        return embedding_bag(rows, self._table, mode="sum").T

    def contiguous(self, items: slice) -> Tensor:
        """Return (B, num_items) float32 of consecutive items, in a tensor of its own."""
        return self.of(items).contiguous()


def sums_of_codes(log_probs: Tensor, codes: Tensor, items: Tensor) -> Tensor:
    """Return (B, C) float32: the same sums, of some items of each user.

    Args:
        log_probs: (B, R, K) of all positions.
        codes: (N, R) of all items, each below K.
        items: (B, C) item rows.
    """
    own = codes[items].long()
    total = torch.zeros(items.shape, device=items.device)
    for position in range(codes.shape[1]):
        total += log_probs[:, position].float().gather(1, own[:, :, position])
    return total
