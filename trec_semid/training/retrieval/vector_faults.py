"""What of a config makes no sense where lists are made by vectors: merged interests, an index, distances."""

from typing import NamedTuple

from trec_semid.core.config import faults_of_unread
from trec_semid.core.errors import ConfigError
from trec_semid.data.features import describe_item
from trec_semid.data.schema import Dataset
from trec_semid.search.interests import InterestsConfig
from trec_semid.training.retrieval.evaluation_config import EvaluationConfig

_LEAVE_INDEX = "leave out evaluation.index"


class VectorFacts(NamedTuple):
    """What a run's vectors are."""

    kind: str
    """Of the model."""
    num_interests: int
    """Vectors of a user."""
    weighs_interests: bool
    """Whether these have probabilities."""
    has_vectors: bool
    """Whether items are scored by vectors."""
    has_beam: bool
    """Whether a beam makes the lists."""
    counts_codes: bool
    """Whether log-probabilities of codes count in the scores of items."""


def faults_of_vectors(facts: VectorFacts, evaluation: EvaluationConfig) -> list[str]:
    """Return what makes no sense, each with what to do.

    Args:
        facts: of the run.
        evaluation: how lists are made.
    """
    faults = _faults_of_interests(facts, evaluation.interests) if evaluation.interests else []
    if evaluation.has_index and facts.has_beam:
        faults.append(f"evaluation.index: a beam makes the lists: {_LEAVE_INDEX}")
    elif evaluation.has_index and not facts.has_vectors:
        faults.append(f"evaluation.index: is over item vectors, and items have none: {_LEAVE_INDEX}")
    elif evaluation.has_index and facts.counts_codes:
        faults.append(
            "evaluation.index: holds item vectors, and log-probabilities of codes count in scores too: set "
            f"loss.code_share = 0, or {_LEAVE_INDEX}"
        )
    if evaluation.list_metrics.distance and (facts.has_beam or not facts.has_vectors):
        faults.append(
            "evaluation.list_metrics.distance: is of item vectors, and no lists are made by any: set "
            "evaluation.list_metrics.distance = false"
        )
    return faults


def _faults_of_interests(facts: VectorFacts, interests: InterestsConfig) -> list[str]:
    if facts.num_interests == 1:
        return [
            f"evaluation.interests: model.kind = '{facts.kind}' has one interest a user: leave out "
            "evaluation.interests, or take a model of several"
        ]
    merge = interests.settled(weighs_interests=facts.weighs_interests).merge
    by_category = merge == "diversity"
    if by_category and interests.diversity_field is None:
        return [
            "evaluation.interests.merge: 'diversity' is of the categories of items: give "
            "evaluation.interests.diversity_field"
        ]
    if not by_category and interests.diversity_field is not None:
        return [
            f"evaluation.interests.diversity_field: merge = '{merge}' reads no categories: leave it out, or "
            "set evaluation.interests.merge = 'diversity'"
        ]
    if merge == "weighted" and not facts.weighs_interests:
        return [
            "evaluation.interests.merge: 'weighted' counts probabilities of interests, and those of this "
            f"model.kind = '{facts.kind}' have none: set evaluation.interests.merge = 'score'"
        ]
    if not by_category:
        of_categories = f"merge = '{merge}' counts no categories"
        remedy = "set evaluation.interests.merge = 'diversity'"
        return faults_of_unread(
            interests, "evaluation.interests", ["diversity_weight"], of_categories, remedy
        )
    return []


def expect_category_fields(dataset: Dataset, evaluation: EvaluationConfig) -> None:
    """Refuse fields that are read for categories and are none: quantiles of a number are no topics.

    Args:
        dataset: that has the item fields.
        evaluation: names some of them.

    Raises:
        ConfigError: an unknown field, or one of numbers.
    """
    fields = dataset.facts.item_fields
    have = ", ".join(name for name, facts in fields.items() if facts.kind == "category")
    for name, field in evaluation.category_fields.items():
        key = f"evaluation.{name}"
        describe_item(dataset, [field], has_id=False, key=key)
        if fields[field].kind == "number":
            remedy = f"Name one of categories: {have}" if have else f"Leave {key} out: none has categories"
            raise ConfigError(f"{key}: '{field}' is a field of numbers, which have no categories. {remedy}.")
