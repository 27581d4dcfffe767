"""Lists made of the lists of a user's interests, exact ones or those of an index, and what they are made of.

Legend: B users of a batch, M interests of a user, N length of the lists, D width.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from trec_semid.core.arrays import Array
from trec_semid.data.ragged import Ragged
from trec_semid.evaluation.list_metrics import ListedInterests
from trec_semid.metrics.target_positions import ListedTargets, UserItems
from trec_semid.models.queries import Queries
from trec_semid.search.ann import IndexSearch, NoIndexConfig
from trec_semid.search.catalogue import Catalogue
from trec_semid.search.exact import ExactSearch
from trec_semid.search.interests import InterestSearch, MergedLists
from trec_semid.search.stretches import vectors_of
from trec_semid.training.retrieval.evaluation.asked import AskedModel, Judge, penalties_of
from trec_semid.training.retrieval.evaluation_config import EvaluationConfig

_USERS_AT_ONCE = 4096
_NUMBERS_AT_ONCE = 1 << 24
"""Of what merging knows of candidates, their places in all lists or their categories: 128 MiB."""


@final
class MergingLister:
    """Lists the catalogue for each interest by itself, and merges; a user may have one interest alone."""

    def __init__(
        self, asked: AskedModel, evaluation: EvaluationConfig, judge: Callable[[], Judge] | None = None
    ) -> None:
        """Take a model whose items have vectors.

        Args:
            asked: the model.
            evaluation: how lists are made and merged.
            judge: gives what makes the same lists without an index; None where there is no index.
        """
        self._asked, self._evaluation, self._judge = asked, evaluation, judge
        self._interests = evaluation.interests_of(asked.method)
        self._categories: Tensor | None = None
        if (field := self._interests.diversity_field) is not None:
            self._categories = torch.from_numpy(asked.data.categories(field)).to(asked.ranks.device)
        self.users_at_once = self._users_at_once()
        self._penalties = penalties_of(asked.data, evaluation.unseen_penalty, asked.ranks)
        self._index: IndexSearch | None = None
        self._catalogue: Catalogue | None = None
        self._search: InterestSearch | None = None

    def begin(self) -> None:
        """Make the vectors of all items, and where one is asked for an index of them if they have changed."""
        catalogue = self._asked.catalogue()
        index = self._evaluation.index
        if index is None or isinstance(index, NoIndexConfig):
            search = ExactSearch([catalogue], self._penalties)
        else:
            if self._index is None or not self._index.is_of(catalogue):
                self._index = IndexSearch(index, catalogue, self._penalties)
            search = self._index
        self._catalogue = catalogue
        self._search = InterestSearch(search, self._interests, self._categories)

    def places(self, histories: Ragged, chosen: Array, users: UserItems, length: int) -> ListedTargets | None:
        """See `Lister`; the chosen are (B,) rows."""
        queries = self._asked.queries(histories, chosen)
        search = self._begun()
        if not search.is_shared and not len(chosen):
            return None
        # Without users of its own a rank still searches its stretch for those of others.
        places = search.places(queries, users, length)
        return places if len(chosen) else None

    def listed(
        self, histories: Ragged, chosen: Array, users: UserItems, length: int
    ) -> tuple[ListedInterests, MergedLists]:
        """Return what lists are made of, and these; all ranks together, also without users.

        Args:
            histories: of all users of the split.
            chosen: (B,) rows of these.
            users: items that are not listed.
            length: of the lists.
        """
        queries, search = self._asked.queries(histories, chosen), self._begun()
        vectors = queries.vectors
        assert vectors is not None, "a config without item vectors is refused"
        interests = vectors.unsqueeze(1) if vectors.dim() == 2 else vectors
        lists = search.lists(queries, users, length)
        merged = search.merge(lists, queries.interest_log_probs, length)
        assert self._catalogue is not None, "begun"
        of_items = vectors_of(self._catalogue, merged.items)
        listed = ListedInterests(
            interests, _exists(queries, interests), lists.items, merged.listed_by, of_items
        )
        return listed, merged

    def interests(self, histories: Ragged, chosen: Array) -> Tensor:
        """Return (B, M, D) interests after some histories; all ranks together.

        Args:
            histories: of users, also such as end earlier.
            chosen: (B,) rows of these.
        """
        vectors = self._asked.queries(histories, chosen).vectors
        assert vectors is not None, "a config without item vectors is refused"
        return vectors.unsqueeze(1) if vectors.dim() == 2 else vectors

    def item_vectors(self, rows: Tensor) -> Tensor:
        """Return (..., D) vectors of items at (...) rows; all ranks together."""
        assert self._catalogue is not None, "begun"
        return vectors_of(self._catalogue, rows)

    def exact(self) -> Judge | None:
        """See `Lister`: it is, but for an index."""
        return self._judge() if self._judge else None

    def _users_at_once(self) -> int:
        """Return how many users' lists are merged together: a candidate has M places, and V categories."""
        num_interests = of_candidate = self._asked.method.num_interests
        length, of_user = min(max(self._evaluation.cutoffs), self._asked.data.num_items), 0
        if self._categories is not None:
            of_candidate = max(num_interests, self._categories.shape[1])
            of_user = int(self._categories.max()) + 1
        numbers = num_interests * length * of_candidate + of_user
        return max(1, min(_USERS_AT_ONCE, _NUMBERS_AT_ONCE // numbers))

    def _begun(self) -> InterestSearch:
        assert self._search is not None, "begun"
        return self._search


def _exists(queries: Queries, interests: Tensor) -> Tensor:
    """Return (B, M) bool: which interests list anything."""
    log_probs = queries.interest_log_probs
    if log_probs is None:
        return torch.ones(interests.shape[:2], dtype=torch.bool, device=interests.device)
    return log_probs > -torch.inf
