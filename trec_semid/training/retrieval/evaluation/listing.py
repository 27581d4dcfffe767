"""From users of a split to lists: their histories become what a search asks, batch by batch.

The searches themselves, which know no split and no history, are the room `search`.

Legend: B users of a batch, N items.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from trec_semid.core.arrays import Array
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.dataset import RetrievalData
from trec_semid.metrics.target_positions import ListedTargets, TopItems, UserItems
from trec_semid.models.queries import Queries
from trec_semid.runtime.ranks import Ranks
from trec_semid.search.beam import BeamSearch
from trec_semid.search.code_prior import CodePrior
from trec_semid.search.exact import ExactSearch, users_at_once
from trec_semid.search.graph import Graph, GraphConfig, GraphSearch, build_all_edges
from trec_semid.search.interests import InterestsConfig
from trec_semid.search.popularity import PopularitySearch
from trec_semid.search.two_stage import TwoStageSearch
from trec_semid.tokenizers.inputs.shards import sum_over_ranks
from trec_semid.training.retrieval.evaluation.asked import (
    NUM_JUDGED,
    AskedModel,
    Judge,
    Lister,
    code_prior_of,
    penalties_of,
)
from trec_semid.training.retrieval.evaluation.merging import MergingLister
from trec_semid.training.retrieval.evaluation_config import EvaluationConfig

MOST_TUPLES = 50_000
"""Of a beam over all tuples, over its users: what a decoder keeps of each is a few KB."""
NUM_JUDGED_BY_WIDE_BEAM = 100
"""The same where the exact lists are those of a beam over all tuples, which takes a while."""
_USERS_OF_BEAM = 1024
_USUAL_WIDTH = 100


def lister_of(asked: AskedModel, evaluation: EvaluationConfig) -> Lister:
    """Return how a model that learns is to list, as its method and the settings of evaluation say."""
    match asked.method.search(evaluation.search):
        case "beam":
            assert evaluation.beam_width, "a config without is refused where the method needs one"
            return BeamLister(asked, evaluation.beam_width, prior=code_prior_of(asked, evaluation))
        case "exact":
            return _scoring_lister(asked, evaluation)
        case "two_stage":
            assert evaluation.candidates, "it is what makes two stages"
            width = evaluation.beam_width
            penalties = penalties_of(asked.data, evaluation.unseen_penalty, asked.ranks)
            return TwoStageLister(
                asked,
                num_candidates=evaluation.candidates,
                beam_width=width,
                penalties=penalties,
                prior=code_prior_of(asked, evaluation),
            )
        case "graph":
            assert evaluation.graph, "it is what is searched"
            penalties = penalties_of(asked.data, evaluation.unseen_penalty, asked.ranks)
            prior = code_prior_of(asked, evaluation)
            return GraphLister(asked, evaluation.graph, penalties=penalties, prior=prior)
        case "popularity":
            return PopularityLister(asked.data, asked.ranks)


def merging_lister_of(
    asked: AskedModel, evaluation: EvaluationConfig, lister: Lister
) -> MergingLister | None:
    """Return what tells what the lists of a model are made of; None where items have no vectors.

    Args:
        asked: the model.
        evaluation: how it lists.
        lister: by which it lists; the same where that can tell.
    """
    if isinstance(lister, MergingLister):
        return lister
    is_exact = asked.method.search(evaluation.search) == "exact"
    return MergingLister(asked, evaluation) if is_exact and asked.model.has_item_vectors else None


def _scoring_lister(asked: AskedModel, evaluation: EvaluationConfig) -> Lister:
    """Return what lists by scores of items."""
    interests = evaluation.interests_of(asked.method)
    if evaluation.has_index:
        without = evaluation.model_copy(update={"index": None})
        return MergingLister(
            asked, evaluation, lambda: Judge(_scoring_lister(asked, without), NUM_JUDGED, "index_recall")
        )
    if interests.needs_lists:
        return MergingLister(asked, evaluation)
    # One look at all scores is enough where no interest's own list is asked for.
    penalties = penalties_of(asked.data, evaluation.unseen_penalty, asked.ranks)
    return ExactLister([asked], penalties, [interests], prior=code_prior_of(asked, evaluation))


@final
class ExactLister:
    """Scores every item, by one model or the mean of several, less penalties (N,) of items."""

    def __init__(
        self,
        members: Sequence[AskedModel],
        penalties: Tensor | None = None,
        interests: Sequence[InterestsConfig] | None = None,
        *,
        prior: CodePrior | None = None,
    ) -> None:
        self.members, self._penalties, self._prior = tuple(members), penalties, prior
        self._interests = interests or [EvaluationConfig().interests_of(one.method) for one in members]
        self.users_at_once = users_at_once(self.members[0].data.num_items)
        self._search: ExactSearch | None = None

    def begin(self) -> None:
        """Make the vectors of all items, for each model."""
        penalties = self._penalties
        if self._prior is not None:  # of one model's codes: an ensemble has none
            penalties = less_gains(penalties, self._prior, self.members[0])
        self._search = ExactSearch([member.catalogue() for member in self.members], penalties)

    def places(self, histories: Ragged, chosen: Array, users: UserItems, length: int) -> ListedTargets | None:
        """See `Lister`; the chosen are (B,) rows."""
        queries = self._queries(histories, chosen)
        assert self._search is not None, "begun"
        if not self._search.is_shared and not len(chosen):
            return None
        # Without users of its own a rank still searches its stretch for those of others.
        places = self._search.places(queries, users, length)
        return places if len(chosen) else None

    def top_items(self, histories: Ragged, chosen: Array, users: UserItems, length: int) -> TopItems:
        """Return lists of the chosen (B,) rows with their scores; all ranks together."""
        assert self._search is not None, "begun"
        return self._search.top_items(self._queries(histories, chosen), users, length)

    def _queries(self, histories: Ragged, chosen: Array) -> list[Queries]:
        return [
            interests.counted(member.queries(histories, chosen))
            for member, interests in zip(self.members, self._interests, strict=True)
        ]

    def exact(self) -> None:
        """See `Lister`: it is."""
        return


@final
class BeamLister:
    """Says codes position by position, held to tuples that exist."""

    def __init__(
        self,
        asked: AskedModel,
        width: int,
        *,
        prior: CodePrior | None = None,
        users_at_once: int = _USERS_OF_BEAM,
    ) -> None:
        self._asked, self._width, self._prior, self.users_at_once = asked, width, prior, users_at_once
        self._live = asked.code_map
        self._search: BeamSearch | None = None

    def begin(self) -> None:
        """Sort the tuples of the map as it is now."""
        self._search = BeamSearch(self._live.codes, self._live.sizes, self._width, prior=self._prior)

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
            return Judge(ExactLister([self._asked], prior=self._prior), NUM_JUDGED)
        num_tuples = len(self._live.codes.unique(dim=0))
        if num_tuples > MOST_TUPLES:
            return None
        wide = BeamLister(self._asked, num_tuples, users_at_once=MOST_TUPLES // num_tuples)
        return Judge(wide, NUM_JUDGED_BY_WIDE_BEAM)


@final
class TwoStageLister:
    """Lets codes propose some items to each user, and item vectors order them."""

    def __init__(
        self,
        asked: AskedModel,
        *,
        num_candidates: int,
        beam_width: int | None,
        penalties: Tensor | None = None,
        prior: CodePrior | None = None,
        most_users: int | None = None,
    ) -> None:
        """Take a model with both losses.

        Args:
            asked: the model.
            num_candidates: of each user.
            beam_width: of the beam that proposes them; None sums up the codes of every item.
            penalties: (N,) taken off the scores; None where nothing is.
            prior: by which codes said apart are weighed; None takes them as they are.
            most_users: of a batch; as many as memory bounds where not given.
        """
        self._asked, self._live, self._penalties, self._prior = asked, asked.code_map, penalties, prior
        self._num_candidates, self._beam_width = num_candidates, beam_width
        # A beam takes memory by its width, sums over codes by the catalogue.
        by_sums = users_at_once(asked.data.num_items)
        by_beam = max(1, _USERS_OF_BEAM * _USUAL_WIDTH // max(beam_width or 1, _USUAL_WIDTH))
        self.users_at_once = most_users or (by_beam if beam_width else by_sums)
        self._search: TwoStageSearch | None = None

    def begin(self) -> None:
        """Make the vectors of all items, and sort the tuples of the map as it is now."""
        self._search = TwoStageSearch(
            self._asked.catalogue(),
            self._live.codes,
            self._live.sizes,
            num_candidates=self._num_candidates,
            beam_width=self._beam_width,
            penalties=self._penalties,
            prior=self._prior,
        )

    def places(self, histories: Ragged, chosen: Array, users: UserItems, length: int) -> ListedTargets | None:
        """See `Lister`; the chosen are (B,) rows."""
        queries = self._asked.model.two_stage_queries(*self._asked.read(histories, chosen))
        assert self._search is not None, "begun"
        # Without users of its own a rank still scores those candidates of others that lie in its stretch.
        places = self._search.places(queries, users, length)
        return places if len(chosen) else None

    def exact(self) -> Judge | None:
        """See `Lister`: scores of all items, or all proposed by a beam over all tuples where they are few."""
        if self._asked.model.scores_catalogue:
            return Judge(ExactLister([self._asked], self._penalties), NUM_JUDGED, "candidates_agreement")
        num_tuples = len(self._live.codes.unique(dim=0))
        if num_tuples > MOST_TUPLES:
            return None
        wide = TwoStageLister(
            self._asked,
            num_candidates=self._asked.data.num_items,
            beam_width=num_tuples,
            penalties=self._penalties,
            most_users=MOST_TUPLES // num_tuples,
        )
        return Judge(wide, NUM_JUDGED_BY_WIDE_BEAM, "candidates_agreement")


@final
class GraphLister:
    """Follows a graph between items of like codes, by the sum of their log-probabilities."""

    def __init__(
        self,
        asked: AskedModel,
        config: GraphConfig,
        *,
        penalties: Tensor | None = None,
        prior: CodePrior | None = None,
    ) -> None:
        """Take a model of codes alone, with independent heads; penalties are (N,), or None."""
        self._asked, self._live, self._config = asked, asked.code_map, config
        self._penalties, self._prior = penalties, prior
        self.users_at_once = _USERS_OF_BEAM
        self._search: GraphSearch | None = None
        self._built: tuple[Tensor, Tensor] | None = None

    def begin(self) -> None:
        """Build the edges of the map and the tables, where these are others than the last time."""
        codes, tables = self._live.codes, self._live.tables()
        if not self._has_changed(codes, tables):
            return
        num_edges = min(self._config.num_edges, len(codes))
        edges = build_all_edges(tables, codes, num_edges, self._asked.ranks)
        graph = Graph(edges, self._start(len(codes)).to(codes.device))
        penalties = self._penalties
        if self._prior is not None:
            penalties = less_gains(penalties, self._prior, self._asked)
        self._search = GraphSearch(graph, codes, self._config, penalties)
        self._built = codes.clone(), tables.clone()

    def _has_changed(self, codes: Tensor, tables: Tensor) -> bool:
        """Return whether edges have to be built; all ranks together, as they build them together."""
        built = self._built
        is_same = built is not None and torch.equal(built[0], codes) and torch.equal(built[1], tables)
        return bool(sum_over_ranks(torch.tensor(float(not is_same), device=codes.device)) > 0)

    def places(self, histories: Ragged, chosen: Array, users: UserItems, length: int) -> ListedTargets | None:
        """See `Lister`; the chosen are (B,) rows."""
        queries = self._asked.queries(histories, chosen)
        if not len(chosen) or self._search is None:
            return None
        assert queries.code_log_probs is not None, "a config with a graph and without codes is refused"
        return self._search.places(queries.code_log_probs, users, length)

    def exact(self) -> Judge:
        """See `Lister`: scores of all items."""
        exact = ExactLister([self._asked], self._penalties, prior=self._prior)
        return Judge(exact, NUM_JUDGED, "graph_agreement")

    def _start(self, num_items: int) -> Tensor:
        """Return the first pool of everybody."""
        if self._config.start == "random":
            drawn = torch.randperm(num_items, generator=torch.Generator().manual_seed(0))
            return drawn[: self._config.pool]
        counts = torch.from_numpy(self._asked.data.item_counts)
        return counts.sort(descending=True, stable=True).indices[: self._config.pool]


def less_gains(penalties: Tensor | None, prior: CodePrior, asked: AskedModel) -> Tensor:
    """Return (N,) what is taken off the sums of codes as the map is now, negative where an item gains."""
    gains = prior.of_items(asked.code_map.codes)
    return -gains if penalties is None else penalties - gains


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
