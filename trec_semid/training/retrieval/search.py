"""Ways to list a catalogue for users: by exact scores, by a beam over codes, by popularity.

Legend: B users of a batch, N items, D width.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, final

import torch
from torch import Tensor

from trec_semid.core.arrays import Array
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.batches import SequenceBatch, history_batch
from trec_semid.data.retrieval.dataset import RetrievalData
from trec_semid.layers.tuple_trie import TupleTrie
from trec_semid.metrics.target_positions import ListedTargets, UserItems, locate_targets, positions_in_lists
from trec_semid.models.beam import NextLogProbs, decode_items, parallel_heads
from trec_semid.models.catalogue_scores import CatalogueParts, CatalogueScores, build_catalogue
from trec_semid.models.item_tokens import Tokens
from trec_semid.models.retriever import Retriever
from trec_semid.models.tiger import Tiger
from trec_semid.runtime.ranks import Ranks
from trec_semid.training.retrieval.item_feed import ItemFeed

SCORES_AT_ONCE = 1 << 26
"""Users of a batch times items: scores that are made once and kept between the two looks at them."""
MOST_TUPLES = 50_000
"""Of a beam over all tuples, over its users: what a decoder keeps of each is a few KB."""


class Search(Protocol):
    """Lists the catalogue for users."""

    users_at_once: int
    """Users of a batch, at most."""

    def begin(self) -> None:
        """Take the model as it is now; all ranks together."""
        ...

    def places(self, histories: Ragged, chosen: Array, users: UserItems, length: int) -> ListedTargets | None:
        """Return where targets stand, in lists of so many items; all ranks together, None without users.

        Args:
            histories: of all users of the split.
            chosen: (B,) rows of these.
            users: their targets, and items that are not listed.
            length: of the lists.
        """
        ...


@final
class ExactSearch:
    """Scores every item for every user; all of one score for a user without a history."""

    def __init__(
        self,
        retriever: Retriever,
        feed: ItemFeed,
        data: RetrievalData,
        ranks: Ranks,
        unseen_penalty: float = 0.0,
    ) -> None:
        self._retriever, self._feed, self._data, self._ranks = retriever, feed, data, ranks
        self._penalties = penalties_of(data, unseen_penalty, ranks)
        self.users_at_once = max(1, SCORES_AT_ONCE // data.num_items)
        self._catalogue = CatalogueParts(None, None, None)

    def begin(self) -> None:
        """Make the vectors of all items."""
        self._catalogue = build_catalogue(self._retriever, self._feed.chunk, self._data.num_items)

    def places(self, histories: Ragged, chosen: Array, users: UserItems, length: int) -> ListedTargets | None:
        """See `Search`."""
        scores = self.scores(histories, chosen)
        return None if scores is None else _places(scores.of, users, self.num_items, length, self._penalties)

    def scores(self, histories: Ragged, chosen: Array) -> CatalogueScores | None:
        """Return the chosen users' scores without penalties; all ranks together, None without users."""
        states = self._states(histories, chosen)
        return CatalogueScores(self._retriever, self._catalogue, states) if len(chosen) else None

    def beam(self, width: int) -> "BeamSearch":
        """Return a beam over the codes that the same model predicts."""
        return BeamSearch(self._retriever, self._feed, self._data, self._ranks, width)

    @property
    def num_items(self) -> int:
        """Of the catalogue."""
        return self._data.num_items

    def _states(self, histories: Ragged, chosen: Array) -> Tensor:
        batch = _batch(histories, chosen, self._data, self._ranks)
        tokens = self._retriever.items(self._feed.listed(batch))
        found = self._retriever.states(tokens, batch.places)
        states = found.new_zeros(len(chosen), found.shape[1])
        return states.index_copy(0, (batch.places.lengths > 0).nonzero().squeeze(1), found).float()


@final
class EnsembleSearch:
    """Scores every item by the mean of several searches' scores, less its penalty."""

    def __init__(self, members: Sequence[ExactSearch], penalties: Tensor | None = None) -> None:
        self._members, self._penalties = members, penalties
        self.users_at_once = min(member.users_at_once for member in members)

    def begin(self) -> None:
        """Make the vectors of all items, for each member."""
        for member in self._members:
            member.begin()

    def places(self, histories: Ragged, chosen: Array, users: UserItems, length: int) -> ListedTargets | None:
        """See `Search`."""
        found = [member.scores(histories, chosen) for member in self._members]
        scores = [each for each in found if each is not None]
        if not scores:
            return None

        def mean(items: slice) -> Tensor:
            """Return (B, n) scores of consecutive items."""
            total = scores[0].of(items)
            for other in scores[1:]:
                total += other.of(items)
            return total / len(scores)

        return _places(mean, users, self._members[0].num_items, length, self._penalties)


@final
class BeamSearch:
    """Says codes position by position, held to tuples that exist; items of a tuple stand by row.

    Targets that the beam does not reach are in no list: with `width` >= the number of tuples it is exact.
    """

    def __init__(
        self,
        model: Retriever | Tiger,
        feed: ItemFeed,
        data: RetrievalData,
        ranks: Ranks,
        width: int,
        *,
        users_at_once: int = 1024,
    ) -> None:
        live = model.items.live
        assert live is not None, "refused by RetrieveConfig"
        self._model, self._feed, self._data, self._ranks, self._live = model, feed, data, ranks, live
        self.width, self.users_at_once = width, users_at_once
        self._trie: TupleTrie | None = None

    def begin(self) -> None:
        """Sort the tuples of the map as it is now."""
        sizes = [self._live.tables.num_rows - 1] * self._live.codes.shape[1]
        self._trie = TupleTrie.build(self._live.codes, sizes).to(self._ranks.device)

    def places(self, histories: Ragged, chosen: Array, users: UserItems, length: int) -> ListedTargets | None:
        """See `Search`."""
        batch = _batch(histories, chosen, self._data, self._ranks)
        tokens = self._model.items(self._feed.listed(batch))
        ask = self._step(tokens, batch, len(chosen)) if len(chosen) else None
        if ask is None or self._trie is None:
            return None
        found = decode_items(
            self._trie, len(chosen), ask, width=self.width, num_items=length, exclude=_excluded(users)
        )
        return ListedTargets(positions_in_lists(found.items, users.targets, users.num_targets), found.items)

    def exact(self) -> "ExactSearch | BeamSearch | None":
        """Return the exact search that it stands for; None where nothing exact is affordable.

        TIGER scores no items. A beam as wide as there are tuples is exact for it, if they are not too many.
        """
        if not isinstance(self._model, Tiger):
            return ExactSearch(self._model, self._feed, self._data, self._ranks)
        num_tuples = len(self._live.codes.unique(dim=0))
        if num_tuples > MOST_TUPLES:
            return None
        return BeamSearch(
            self._model,
            self._feed,
            self._data,
            self._ranks,
            num_tuples,
            users_at_once=MOST_TUPLES // num_tuples,
        )

    def _step(self, tokens: Tokens, batch: SequenceBatch, num_users: int) -> NextLogProbs:
        if isinstance(self._model, Tiger):
            return self._model.next_log_probs(tokens, batch.places)
        assert self._model.heads is not None, "refused by RetrieveConfig"
        assert tokens.code_tables is not None, "items have codes"
        found = self._model.states(tokens, batch.places)
        states = found.new_zeros(num_users, found.shape[1])
        states = states.index_copy(0, (batch.places.lengths > 0).nonzero().squeeze(1), found)
        return parallel_heads(self._model.heads.log_probs(states, tokens.code_tables).unbind(1))


@final
class PopularitySearch:
    """The same list for everyone: items by their training events."""

    def __init__(self, data: RetrievalData, ranks: Ranks) -> None:
        self._counts = torch.from_numpy(data.item_counts).float().to(ranks.device)
        self.users_at_once = max(1, SCORES_AT_ONCE // data.num_items)

    def begin(self) -> None:
        """Nothing changes."""

    def places(self, histories: Ragged, chosen: Array, users: UserItems, length: int) -> ListedTargets | None:
        """See `Search`."""
        if not len(chosen):
            return None

        def score(items: slice) -> Tensor:
            """Return (B, n): counts, the same for everyone."""
            return self._counts[items].expand(len(chosen), -1).clone()

        return locate_targets(score, users, len(self._counts), list_length=length)


def penalties_of(data: RetrievalData, unseen_penalty: float, ranks: Ranks) -> Tensor | None:
    """Return (N,) what is taken off items' scores: the penalty where there is no training event, or nothing.

    None where that is nothing for all.
    """
    if not unseen_penalty:
        return None
    return unseen_penalty * torch.from_numpy(data.item_counts == 0).float().to(ranks.device)


def _places(
    scores: Callable[[slice], Tensor],
    users: UserItems,
    num_items: int,
    length: int,
    penalties: Tensor | None,
) -> ListedTargets:
    """Return where targets stand by scores, which are tensors of their own, less penalties (N,)."""

    def lowered(items: slice) -> Tensor:
        """Return (B, n) scores of consecutive items."""
        found = scores(items)
        return found if penalties is None else found.sub_(penalties[items])

    return locate_targets(lowered, users, num_items, list_length=length, kept_scores=SCORES_AT_ONCE)


def _batch(histories: Ragged, chosen: Array, data: RetrievalData, ranks: Ranks) -> SequenceBatch:
    return history_batch(histories, chosen, data.item_features, len(chosen)).to(ranks.device)


def _excluded(users: UserItems) -> Tensor | None:
    """Return (B, S) masked items that are no targets of their user, filled up with -1; None without any."""
    if not len(users.masked):
        return None
    num_users = len(users.num_masked)
    owners = torch.repeat_interleave(torch.arange(num_users, device=users.masked.device), users.num_masked)
    place = torch.arange(len(owners), device=owners.device)
    place = place - torch.repeat_interleave(users.num_masked.cumsum(0) - users.num_masked, users.num_masked)
    rows = torch.full((num_users, int(users.num_masked.max())), -1, device=owners.device)
    rows[owners, place] = users.masked
    targets = torch.repeat_interleave(torch.arange(num_users, device=owners.device), users.num_targets)
    stride = 1 + torch.maximum(users.masked.max(), users.targets.max())
    is_target = torch.isin(owners * stride + users.masked, targets * stride + users.targets)
    rows[owners[is_target], place[is_target]] = -1
    return rows
