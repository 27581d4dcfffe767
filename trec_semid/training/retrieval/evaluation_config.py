"""Config of how a retriever's lists are made, and of what is said of them."""

from typing import Any

from pydantic import Field, PositiveInt

from trec_semid.core.config import Config
from trec_semid.evaluation.list_metrics import ListMetricsConfig
from trec_semid.models.retriever import Retriever, SearchKind
from trec_semid.search.ann import IndexConfig
from trec_semid.search.code_prior import CodePriorConfig
from trec_semid.search.graph import GraphConfig
from trec_semid.search.interests import InterestsConfig


class EvaluationConfig(Config):
    """What counts as retrieved."""

    cutoffs: tuple[PositiveInt, ...] = Field(default=(5, 10, 50, 100), min_length=1)
    masks_history: bool = True
    """Whether items of the user's history are taken out of the list; a target never is."""
    unseen_penalty: float = Field(default=0.0, ge=0, le=1e3)
    """Taken off the score of an item without a training event, whatever its label: the more, the fewer of
    these items in the lists."""
    beam_width: PositiveInt | None = None
    """Tuples that a beam over codes keeps, as many as the longest list at least; all items are scored where
    not given. TIGER and chained heads need one."""
    candidates: PositiveInt | None = None
    """Items that codes propose to each user, of which item vectors then make the lists: by a beam, or by the
    codes of every item where `beam_width` is not given. All items are scored where neither is."""
    code_prior: CodePriorConfig | None = None
    """What is known of codes before any user, by which independent heads are corrected where codes list or
    propose items: naive Bayes where they propose, and nothing elsewhere, if not given; a run that does
    not say so proposed by the sum of log-probabilities."""
    graph: GraphConfig | None = None
    """A graph between items of like codes that is followed by the scores of codes alone; all items are scored
    where not given."""
    interests: InterestsConfig | None = None
    """How the lists of a user's interests become one, of methods with several; the method's own way where not
    given."""
    index: IndexConfig | None = None
    """An index over item vectors that lists are asked of; all items are scored where not given."""
    list_metrics: ListMetricsConfig = ListMetricsConfig()
    """What is said of interests and lists beside where targets stand, at the end of a run."""

    @property
    def has_index(self) -> bool:
        """Whether lists are an index's."""
        return self.index is not None and self.index.kind != "none"

    @property
    def has_graph(self) -> bool:
        """Whether lists are a graph's."""
        return self.graph is not None and self.graph.kind != "none"

    @property
    def has_code_prior(self) -> bool:
        """Whether codes are corrected by one."""
        return self.code_prior is not None and self.code_prior.kind != "none"

    @property
    def search(self) -> SearchKind:
        """How a model that learns is asked to list."""
        if self.candidates:
            return "two_stage"
        if self.has_graph:
            return "graph"
        return "beam" if self.beam_width else "exact"

    def interests_of(self, method: Retriever[Any]) -> InterestsConfig:
        """Return how the lists of a user's interests become one: as asked for, or the method's way."""
        return (self.interests or InterestsConfig()).settled(weighs_interests=method.weighs_interests)

    @property
    def category_fields(self) -> dict[str, str]:
        """Which item fields are read for categories, by the key that names them."""
        interests = self.interests or InterestsConfig()
        named = {
            "interests.diversity_field": interests.diversity_field,
            "list_metrics.category_field": self.list_metrics.category_field,
        }
        return {key: field for key, field in named.items() if field is not None}
