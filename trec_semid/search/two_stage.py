"""Two stages: codes propose some items to each user, and item vectors decide their order.

    score(u, i) = max_m (q_um . v_i + log p_um) + share * log p(codes of i | u) - penalty_i

of the C candidates alone; an item that is not among them is in no list. They are those of highest
log p(codes | u) + gain_i, by a beam over the tuples that exist or, with independent heads, of highest
log p(codes | u) + gain_i - penalty_i, by the sums of all items. Gains are what naive Bayes adds to the sum of
independent codes (`search.code_prior`); chained ones have none. A beam proposes items with a penalty as
others, which then make room for fewer.
With C >= N, and a beam as wide as there are tuples, the lists are those of exact search.

Legend: B users, M interests of a user, N items, n items of a stretch, C candidates, R positions, K codes,
D width.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from trec_semid.metrics.target_positions import (
    ListedTargets,
    TopItems,
    UserItems,
    list_top_items,
    positions_in_lists,
)
from trec_semid.models.queries import Queries, TwoStageQueries
from trec_semid.search.beam import BeamSearch
from trec_semid.search.catalogue import Catalogue
from trec_semid.search.code_prior import CodePrior
from trec_semid.search.code_scores import CodeScores, sums_of_codes
from trec_semid.search.retrieved import Retrieved, best_items
from trec_semid.search.stretches import highest_of_stretches

_NUMBERS_AT_ONCE = 1 << 24
"""Of candidates' vectors that are gathered together: 64 MiB in float32."""


class Proposed(NamedTuple):
    """Candidates of B users."""

    items: Tensor
    """(B, C) item rows, -1 after the last."""
    code_scores: Tensor
    """(B, C) float32 log p(codes | u); whatever after the last."""


@final
class TwoStageSearch:
    """Lists the candidates that codes propose, in the order that item vectors give them."""

    def __init__(
        self,
        catalogue: Catalogue,
        codes: Tensor,
        sizes: Sequence[int],
        *,
        num_candidates: int,
        beam_width: int | None,
        penalties: Tensor | None = None,
        prior: CodePrior | None = None,
    ) -> None:
        """Sort the tuples of the map where a beam goes over them.

        Args:
            catalogue: with vectors; a rank's stretch of it where several search together.
            codes: (N, R) of all items, whatever the stretch.
            sizes: R, codes that each position knows without 'missing'.
            num_candidates: C.
            beam_width: tuples that a beam retains; None sums up the codes of every item.
            penalties: (N,) taken off the scores; None where nothing is.
            prior: by which what independent heads propose is weighed; None takes their sums as they are.
        """
        assert catalogue.vectors is not None, "a config without a loss over items is refused"
        self._catalogue, self._vectors, self._codes = catalogue, catalogue.vectors, codes
        self.num_candidates, self._penalties = min(num_candidates, len(codes)), penalties
        self._beam = BeamSearch(codes, sizes, beam_width, prior=prior) if beam_width else None
        self._has_gains = prior is not None
        self._added: Tensor | None = None
        """(N,) what sums of codes gain, less penalties."""
        if self._beam is None and (prior is not None or penalties is not None):
            gains = torch.zeros(len(codes), device=codes.device) if prior is None else prior.of_items(codes)
            self._added = gains if penalties is None else gains - penalties

    def places(self, queries: TwoStageQueries, users: UserItems, length: int) -> ListedTargets:
        """Return where targets stand, as far as they are candidates, and lists of so many items.

        Where ranks hold a stretch each, all of them call it together, also without users of their own.

        Args:
            queries: what the model says of B users.
            users: their targets, and items that are not listed.
            length: of the lists.
        """
        best = self._best(queries, users, length)
        positions = positions_in_lists(best.items, users.targets, users.num_targets)
        return ListedTargets(positions, best.items[:, :length])

    def top_items(self, queries: TwoStageQueries, users: UserItems, length: int) -> TopItems:
        """Return lists (B, length) with their scores; arguments as of `places`."""
        best = self._best(queries, users, length)
        return TopItems(best.scores[:, :length], best.items[:, :length])

    def _best(self, queries: TwoStageQueries, users: UserItems, length: int) -> Retrieved:
        proposed = self.propose(queries, users)
        scores = self._scores(queries.of_items, proposed.items)
        if queries.code_share:
            scores = scores + queries.code_share * proposed.code_scores
        if self._penalties is not None:
            scores = scores - self._penalties[proposed.items.clamp(min=0)]
        scores = scores.masked_fill(proposed.items < 0, -torch.inf)
        return best_items(scores, proposed.items, max(length, self.num_candidates))

    def propose(self, queries: TwoStageQueries, users: UserItems) -> Proposed:
        """Return each user's candidates: the items of highest log p(codes | u) + gain that may be listed.

        Less penalties where every item's codes are summed up, so that these keep their items out of here too.

        Args:
            queries: what the model says of B users.
            users: items that are not listed; a target always may be.
        """
        num_users = len(users.num_targets)
        if not num_users:
            nobody = users.targets.new_zeros((0, self.num_candidates))
            return Proposed(nobody, nobody.float())
        if self._beam is not None:
            found = self._beam.retrieve(num_users, queries.next_log_probs, users, self.num_candidates)
            if not self._has_gains:
                return Proposed(found.items, found.scores)
            return Proposed(found.items, self._of_codes(queries, found.items))
        assert queries.code_log_probs is not None, "a config without independent heads is refused"
        sums = CodeScores(queries.code_log_probs, self._codes)
        added = self._added

        def score(items: slice) -> Tensor:
            """Return (B, n): sums of codes' log-probabilities and gains, less penalties."""
            scores = sums.contiguous(items)
            return scores if added is None else scores.add_(added[items])

        listed = list_top_items(score, users, len(self._codes), list_length=self.num_candidates)
        if added is None:
            return Proposed(listed.items, listed.scores)
        return Proposed(listed.items, self._of_codes(queries, listed.items))

    def _of_codes(self, queries: TwoStageQueries, items: Tensor) -> Tensor:
        """Return (B, C) log p(codes | u), summed up again: to take off what was added would round."""
        assert queries.code_log_probs is not None, "gains are those of independent heads"
        return sums_of_codes(queries.code_log_probs, self._codes, items.clamp(min=0))

    def _scores(self, queries: Queries, items: Tensor) -> Tensor:
        """Return (B, C) scores by vectors, of all ranks' stretches where there are several."""
        if not self._catalogue.is_shared:
            return self._scores_here(queries, items)
        return highest_of_stretches(queries, items, self._scores_here)

    def _scores_here(self, queries: Queries, items: Tensor) -> Tensor:
        """Return (B, C) float32 scores by vectors; -inf of items that are not in this stretch."""
        assert queries.vectors is not None, "a config without a loss over items is refused"
        rows, scores = (
            items - self._catalogue.first_row,
            torch.full(items.shape, -torch.inf, device=items.device),
        )
        if not len(self._vectors) or not rows.numel():
            return scores
        is_here = (rows >= 0) & (rows < len(self._vectors))
        users_at_once = max(1, _NUMBERS_AT_ONCE // (items.shape[1] * self._vectors.shape[1]))
        for start in range(0, len(rows), users_at_once):
            own = slice(start, start + users_at_once)
            # Only candidates' vectors are gathered: nothing here grows with the catalogue.
            vectors = self._vectors[rows[own].clamp(0, len(self._vectors) - 1)]
            of_interests = queries.vectors[own].view(len(vectors), -1, vectors.shape[2])
            by_interest = torch.bmm(vectors, of_interests.mT.to(vectors.dtype)).float()
            if queries.interest_log_probs is not None:
                by_interest += queries.interest_log_probs[own].unsqueeze(1)
            scores[own] = by_interest.amax(2)
        return scores.masked_fill_(~is_here, -torch.inf)
