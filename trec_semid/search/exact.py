"""Exact search: every item of a catalogue is scored for every user, by one model or by several together.

Where ranks hold a stretch of the catalogue each, all of them search together (`search.stretches`).

Legend: B users, M interests of a user, N items, n items of a stretch, D width.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from trec_semid.metrics.target_positions import (
    ChunkScorer,
    ListedTargets,
    Stretch,
    TopItems,
    UserItems,
    list_top_items,
    locate_targets,
    no_items,
)
from trec_semid.models.queries import Queries
from trec_semid.search.catalogue import Catalogue
from trec_semid.search.code_scores import CodeScores
from trec_semid.search.stretches import bring_together

# In float32 that is 256 MiB.
SCORES_AT_ONCE = 1 << 26
"""Users of a batch times items: scores that are computed once and stored between the two looks at them."""

_PRODUCTS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Scores of interests before the highest is taken: on a CPU they stay in its cache, which halves the time."""
_LEAST_BLOCK = 64


def users_at_once(num_items: int) -> int:
    """Return how many users' scores of all items are stored at once."""
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
        self.num_items, self._rows = catalogues[0].num_items, catalogues[0].rows
        self.is_shared = catalogues[0].is_shared

    def places(self, queries: Sequence[Queries], users: UserItems, length: int) -> ListedTargets:
        """Return where targets stand, and lists of so many items, of this rank's b users.

        Args:
            queries: what each catalogue's model says of the users.
            users: their targets, and items that are not listed; none on a rank that helps others only.
            length: of the lists.
        """
        if not self.is_shared:
            return rank_by(self._scores(queries), users, self.num_items, length)
        together = bring_together(queries, users)
        # Of all ranks' users: either all ranks return here or none, or the collectives below would hang.
        if not sum(together.num_users):
            nobody = users.targets.new_zeros((0, length))
            return ListedTargets(users.targets, nobody)
        stretch = together.stretch(self._rows)
        scores = self._scores(together.queries)
        ranked = rank_by(scores, together.users, self.num_items, length, stretch)
        # Positions are of all ranks' targets; lists have gone back to the ranks of their users (`_merge`).
        return ListedTargets(ranked.positions[together.own_targets()], ranked.top_items)

    def top_items(self, queries: Sequence[Queries], users: UserItems, length: int) -> TopItems:
        """Return the lists of this rank's b users with their scores; of a rank that helps others only, none.

        Args:
            queries: what each catalogue's model says of the users.
            users: items that are not listed.
            length: of the lists.
        """
        if not self.is_shared:
            return list_top_items(self._scores(queries), users, self.num_items, list_length=length)
        together = bring_together(queries, users)
        # As in `places`: without any user no rank goes on.
        if not sum(together.num_users):
            return no_items(0, length, users.targets.device)
        scores, stretch = self._scores(together.queries), together.stretch(self._rows)
        return list_top_items(scores, together.users, self.num_items, list_length=length, stretch=stretch)

    def _scores(self, queries: Sequence[Queries]) -> ChunkScorer:
        return mean_scores(self._catalogues, queries, self._penalties)


def mean_scores(
    catalogues: Sequence[Catalogue], queries: Sequence[Queries], penalties: Tensor | None
) -> ChunkScorer:
    """Return what gives (B, n) scores of consecutive items: the mean over models, less penalties (N,)."""
    scores = [CatalogueScores(*pair) for pair in zip(catalogues, queries, strict=True)]

    def score(items: slice) -> Tensor:
        """Return (B, n)."""
        total = scores[0].of(items)
        for other in scores[1:]:
            # In place: `of` returns a tensor of its own.
            total += other.of(items)
        mean = total / len(scores) if len(scores) > 1 else total
        return mean if penalties is None else mean.sub_(penalties[items])

    return score


def rank_by(
    score: ChunkScorer, users: UserItems, num_items: int, length: int, stretch: Stretch | None = None
) -> ListedTargets:
    """Return where targets stand by scores, and lists of so many items.

    Args:
        score: gives (B, n) scores of consecutive items, in a tensor of its own.
        users: the batch of B.
        num_items: N.
        length: of the lists.
        stretch: of the items that are scored here; all where not given.
    """
    return locate_targets(
        score, users, num_items, list_length=length, stored_scores=SCORES_AT_ONCE, stretch=stretch
    )


@final
class CatalogueScores:
    """Scores of one batch of users for any stretch of a catalogue: q_u . v_i + sum_r l_r(c_r(i) | u).

    Of several interests the one that scores an item highest counts, so the first n of the merged list are the
    first n of the union of every interest's first n.
    Memory: R K B numbers, and a stretch's scores, of every interest.
    """

    def __init__(self, catalogue: Catalogue, queries: Queries) -> None:
        self._first, self._vectors, self._queries = catalogue.first_row, catalogue.vectors, queries.vectors
        self._interests = queries.interest_log_probs
        self._room: Tensor | None = None
        self._by_codes: CodeScores | None = None
        if queries.code_log_probs is not None and catalogue.codes is not None:
            self._by_codes = CodeScores(queries.code_log_probs, catalogue.codes)

    def of(self, items: slice) -> Tensor:
        """Return (B, num_items) float32 scores of consecutive item rows, in a tensor of its own."""
        here = slice(items.start - self._first, items.stop - self._first)
        by_codes = self._by_codes.of(here) if self._by_codes else None
        if self._vectors is None or self._queries is None:
            assert by_codes is not None, "items are scored by one of the two at least"
            return by_codes.contiguous()
        scores = self._of_vectors(self._queries, self._vectors[here])
        return scores if by_codes is None else scores.add_(by_codes)

    def _of_vectors(self, queries: Tensor, items: Tensor) -> Tensor:
        """Return (B, n) float32 from (B, D) or (B, M, D), and (n, D)."""
        if queries.dim() == 2:
            return (queries @ items.T).float()
        num_users, num_interests, _ = queries.shape
        # Interest by interest, so that the highest is taken of long rows; one product for a block of items.
        rows = queries.transpose(0, 1).flatten(0, 1).contiguous()
        best = torch.empty((num_users, len(items)), device=queries.device)
        at_once = _PRODUCTS_AT_ONCE.get(queries.device.type, _PRODUCTS_AT_ONCE["cpu"])
        width = max(_LEAST_BLOCK, at_once // max(1, len(rows)))
        if self._room is None:
            # One memory for all blocks: new pages for each cost a fifth of the products.
            self._room = rows.new_empty(len(rows) * width)
        for block, highest in zip(items.split(width), best.split(width, dim=1), strict=True):
            products = self._room[: len(rows) * len(block)].view(len(rows), len(block))
            torch.mm(rows, block.T, out=products)
            scores = products.float().unflatten(0, (num_interests, num_users))
            if self._interests is not None:
                scores += self._interests.T.unsqueeze(2)
            torch.amax(scores, 0, out=highest)
        return best
