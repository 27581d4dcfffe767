"""What a model has to say of users, by which a search lists items for them: no model is needed to read it.

Legend: B users, M interests of a user, R positions, K codes, D width.
"""

from typing import NamedTuple

from torch import Tensor

from trec_semid.models.heads.beams import NextLogProbs


class Queries(NamedTuple):
    """What a model has to say of B users before items are scored: score = vector . item + sum of its codes'.

    Of a user with M interests the one that scores an item highest counts: score = max_m (q_m . v + log p_m).
    """

    vectors: Tensor | None
    """(B, D), or (B, M, D) of M interests, multiplied with item vectors; None where items are not scored by
    vectors."""
    code_log_probs: Tensor | None
    """(B, R, K + 1) float32, weighted, of which an item has one a position; None where codes do not count."""
    interest_log_probs: Tensor | None = None
    """(B, M) float32 log p_m; None where all interests count alike. An interest of -inf lists nothing."""

    @property
    def num_users(self) -> int:
        """B."""
        parts = [part for part in self if part is not None]
        return len(parts[0])


class TwoStageQueries(NamedTuple):
    """What a model has to say of B users where codes propose items and item vectors decide among them."""

    of_items: Queries
    """Vectors alone."""
    next_log_probs: NextLogProbs
    """What a beam over codes asks."""
    code_log_probs: Tensor | None
    """(B, R, K + 1) float32 of independent heads; None where codes depend on each other."""
    code_share: float
    """How much an item's log p(codes) counts in its score."""
