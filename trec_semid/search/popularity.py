"""Popularity: one list for everyone, items by their training events.

Legend: B users, N items.
"""

from typing import final

from torch import Tensor

from trec_semid.metrics.target_positions import ListedTargets, UserItems
from trec_semid.search.exact import rank_by


@final
class PopularitySearch:
    """Ranks items by a count, the same for all users; of equal ones the lower row first."""

    def __init__(self, counts: Tensor) -> None:
        """Take (N,) float32 counts of training events."""
        self._counts = counts

    def places(self, users: UserItems, length: int) -> ListedTargets:
        """Return where the targets of B users stand, and lists of so many items."""
        num_users = len(users.num_targets)

        def score(items: slice) -> Tensor:
            """Return (B, n): counts, the same for everyone."""
            # Rows of an expanded tensor are one memory; `rank_by` asks for a tensor of its own.
            return self._counts[items].expand(num_users, -1).clone()

        return rank_by(score, users, len(self._counts), length)
