"""From users of a split to lists: their histories become what a search asks, batch by batch.

The searches themselves, which know no split and no history, are the room `search`.

Legend: B users of a batch, N items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, final

import torch
from torch import Tensor

from trec_semid.core.arrays import Array
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.batches import Places, history_batch
from trec_semid.data.retrieval.dataset import RetrievalData
from trec_semid.metrics.target_positions import ListedTargets, UserItems
from trec_semid.models.item_tokens import Tokens
from trec_semid.models.retrieval_model import Queries, RetrievalModel
from trec_semid.models.retriever import Retriever
from trec_semid.runtime.ranks import Ranks
from trec_semid.search.beam import BeamSearch
from trec_semid.search.catalogue import Catalogue, build_catalogue
from trec_semid.search.exact import ExactSearch, users_at_once
from trec_semid.search.popularity import PopularitySearch
from trec_semid.training.retrieval.item_feed import ItemFeed
from trec_semid.training.retrieval.setup import EvaluationConfig

MOST_TUPLES = 50_000
"""Of a beam over all tuples, over its users: what a decoder keeps of each is a few KB."""
NUM_JUDGED = 1_000
"""Users whose lists by a beam are held against the exact ones."""
NUM_JUDGED_BY_WIDE_BEAM = 100
"""The same where the exact lists are those of a beam over all tuples, which takes a while."""
_USERS_OF_BEAM = 1024


class Lister(Protocol):
    """Lists the catalogue for users of a split."""

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

    def exact(self) -> "Judge | None":
        """Return what says how good the lists are that this one guesses; None where nothing is guessed."""
        ...


class Judge(NamedTuple):
    """Lists of the same model that are exact."""

    lister: Lister
    num_users: int
    """That it can be asked for in reasonable time."""


@final
@dataclass(frozen=True)
class AskedModel:
    """A model on its ranks, with what brings it items and histories."""

    method: Retriever[Any]
    model: RetrievalModel
    feed: ItemFeed
    data: RetrievalData
    ranks: Ranks

    def read(self, histories: Ragged, chosen: Array) -> tuple[Tokens, Places]:
        """Return the items of the chosen (B,) histories, and these over them; all ranks together."""
        batch = history_batch(histories, chosen, self.data.item_features, len(chosen)).to(self.ranks.device)
        return self.model.items(self.feed.listed(batch)), batch.places

    def queries(self, histories: Ragged, chosen: Array) -> Queries:
        """Return what items are scored with, of the chosen (B,) users; all ranks together."""
        return self.model.queries(*self.read(histories, chosen))

    def catalogue(self) -> Catalogue:
        """Return what items are scored by now, on several ranks a stretch on each; all ranks together."""
        return build_catalogue(self.model, self.feed.chunk, self.data.num_items, self.ranks)


def lister_of(asked: AskedModel, evaluation: EvaluationConfig) -> Lister:
    """Return how a model that learns is to list, as its method and the settings of evaluation say."""
    match asked.method.search(evaluation.beam_width):
        case "beam":
            assert evaluation.beam_width, "a config without is refused where the method needs one"
            return BeamLister(asked, evaluation.beam_width)
        case "exact":
            penalties = penalties_of(asked.data, evaluation.unseen_penalty, asked.ranks)
            return ExactLister([asked], penalties)
        case "popularity":
            return PopularityLister(asked.data, asked.ranks)


@final
class ExactLister:
    """Scores every item, by one model or the mean of several, less penalties (N,) of items."""

    def __init__(self, members: Sequence[AskedModel], penalties: Tensor | None = None) -> None:
        self.members, self._penalties = tuple(members), penalties
        self.users_at_once = users_at_once(self.members[0].data.num_items)
        self._search: ExactSearch | None = None

    def begin(self) -> None:
        """Make the vectors of all items, for each model."""
        self._search = ExactSearch([member.catalogue() for member in self.members], self._penalties)

    def places(self, histories: Ragged, chosen: Array, users: UserItems, length: int) -> ListedTargets | None:
        """See `Lister`; the chosen are (B,) rows."""
        queries = [member.queries(histories, chosen) for member in self.members]
        assert self._search is not None, "begun"
        if not self._search.is_shared and not len(chosen):
            return None
        # Without users of its own a rank still searches its stretch for those of others.
        places = self._search.places(queries, users, length)
        return places if len(chosen) else None

    def exact(self) -> None:
        """See `Lister`: it is."""
        return


@final
class BeamLister:
    """Says codes position by position, held to tuples that exist."""

    def __init__(self, asked: AskedModel, width: int, *, users_at_once: int = _USERS_OF_BEAM) -> None:
        live = asked.model.items.live
        assert live is not None, "a config with a beam and without codes is refused"
        self._asked, self._live, self._width, self.users_at_once = asked, live, width, users_at_once
        self._search: BeamSearch | None = None

    def begin(self) -> None:
        """Sort the tuples of the map as it is now."""
        sizes = [self._live.tables.num_rows - 1] * self._live.codes.shape[1]
        self._search = BeamSearch(self._live.codes, sizes, self._width)

    def places(self, histories: Ragged, chosen: Array, users: UserItems, length: int) -> ListedTargets | None:
        """See `Lister`; the chosen are (B,) rows."""
        tokens, places = self._asked.read(histories, chosen)
        if not len(chosen) or self._search is None:
            return None
        next_log_probs = self._asked.model.next_log_probs(tokens, places)
        return self._search.places(len(chosen), next_log_probs, users, length)

    def exact(self) -> Judge | None:
        """See `Lister`: scores of all items, or a beam as wide as there are tuples where they are few."""
        if self._asked.model.scores_catalogue:
            return Judge(ExactLister([self._asked]), NUM_JUDGED)
        num_tuples = len(self._live.codes.unique(dim=0))
        if num_tuples > MOST_TUPLES:
            return None
        wide = BeamLister(self._asked, num_tuples, users_at_once=MOST_TUPLES // num_tuples)
        return Judge(wide, NUM_JUDGED_BY_WIDE_BEAM)


@final
class PopularityLister:
    """The same list for everyone."""

    def __init__(self, data: RetrievalData, ranks: Ranks) -> None:
        counts = torch.from_numpy(data.item_counts).float().to(ranks.device)
        self._search = PopularitySearch(counts)
        self.users_at_once = users_at_once(data.num_items)

    def begin(self) -> None:
        """Nothing changes."""

    def places(self, histories: Ragged, chosen: Array, users: UserItems, length: int) -> ListedTargets | None:
        """See `Lister`; the chosen are (B,) rows."""
        return self._search.places(users, length) if len(chosen) else None

    def exact(self) -> None:
        """See `Lister`: it is."""
        return


def penalties_of(data: RetrievalData, unseen_penalty: float, ranks: Ranks) -> Tensor | None:
    """Return (N,) what is taken off items' scores: the penalty where there is no training event, or nothing.

    None where that is nothing for all.
    """
    if not unseen_penalty:
        return None
    return unseen_penalty * torch.from_numpy(data.item_counts == 0).float().to(ranks.device)
