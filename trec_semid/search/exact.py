"""Exact search: every item of a catalogue is scored for every user, by one model or by several together.

Legend: B users, N items, n items of a stretch.
"""

from collections.abc import Sequence
from typing import final

from torch import Tensor

from trec_semid.metrics.target_positions import ChunkScorer, ListedTargets, UserItems, locate_targets
from trec_semid.models.retrieval_model import Queries
from trec_semid.search.catalogue import Catalogue, CatalogueScores

SCORES_AT_ONCE = 1 << 26
"""Users of a batch times items: scores that are made once and kept between the two looks at them."""


def users_at_once(num_items: int) -> int:
    """Return how many users' scores of all items are kept at once."""
    return max(1, SCORES_AT_ONCE // num_items)


@final
class ExactSearch:
    """Ranks items by their score, of several catalogues by the mean of their scores, less a penalty.

    Scores are logits of a softmax over items, each catalogue's up to a constant a user, so their mean ranks
    items as the product of what the models take them to be worth.
    """

    def __init__(self, catalogues: Sequence[Catalogue], penalties: Tensor | None = None) -> None:
        """Take catalogues of the same items.

        Args:
            catalogues: as many as models score together, one at least.
            penalties: (N,) taken off the scores; None where nothing is.
        """
        self._catalogues, self._penalties = tuple(catalogues), penalties
        self.num_items = self._catalogues[0].num_items

    def places(self, queries: Sequence[Queries], users: UserItems, length: int) -> ListedTargets:
        """Return where targets stand, and lists of so many items, of B users.

        Args:
            queries: what each catalogue's model says of the users.
            users: their targets, and items that are not listed.
            length: of the lists.
        """
        scores = mean_scores(self._catalogues, queries, self._penalties)
        return rank_by(scores, users, self.num_items, length)


def mean_scores(
    catalogues: Sequence[Catalogue], queries: Sequence[Queries], penalties: Tensor | None
) -> ChunkScorer:
    """Return what gives (B, n) scores of consecutive items: the mean over models, less penalties (N,)."""
    scores = [CatalogueScores(*pair) for pair in zip(catalogues, queries, strict=True)]

    def score(items: slice) -> Tensor:
        """Return (B, n)."""
        total = scores[0].of(items)
        for other in scores[1:]:
            total += other.of(items)
        mean = total / len(scores) if len(scores) > 1 else total
        return mean if penalties is None else mean.sub_(penalties[items])

    return score


def rank_by(score: ChunkScorer, users: UserItems, num_items: int, length: int) -> ListedTargets:
    """Return where targets stand by scores, and lists of so many items.

    Args:
        score: gives (B, n) scores of consecutive items, in a tensor of its own.
        users: the batch of B.
        num_items: N.
        length: of the lists.
    """
    return locate_targets(score, users, num_items, list_length=length, kept_scores=SCORES_AT_ONCE)
