"""What of a config makes no sense where codes are predicted by heads, or propose the items of lists."""

from typing import NamedTuple

from trec_semid.models.retriever import LossConfig
from trec_semid.training.retrieval.evaluation_config import EvaluationConfig

_LEAVE_HEADS, _LEAVE_CANDIDATES = "leave out loss.code_heads", "leave out evaluation.candidates"


class CodeFacts(NamedTuple):
    """What a run has to do with codes."""

    kind: str
    """Of the model."""
    has_heads: bool
    """Whether it has heads where it predicts codes."""
    predicts_codes: bool
    """Whether it does, or will once another fault is mended."""
    scores_items: bool
    """Whether items are scored by vectors."""
    has_beam: bool
    """Whether a beam goes over codes."""
    advice: str
    """What makes it predict codes."""
    longest: int
    """Of the lists."""


def faults_of_heads(facts: CodeFacts, loss: LossConfig) -> list[str]:
    """Return what makes no sense of heads, each with what to do.

    Args:
        facts: of the run.
        loss: its loss.
    """
    if loss.code_heads == "independent":
        advice = "set loss.code_facets = 1, or loss.code_heads = 'chained'"
        return [f"loss.code_facets: codes are not chained: {advice}"] if loss.code_facets > 1 else []
    if not facts.has_heads:
        return [f"loss.code_heads: model.kind = '{facts.kind}' has no such heads: {_LEAVE_HEADS}"]
    if not facts.predicts_codes and facts.scores_items:
        return [f"loss.code_heads: codes are not predicted: {_LEAVE_HEADS}"]
    if facts.scores_items and loss.code_share > 0 and not facts.has_beam:
        return [
            "loss.code_share: chained codes give an item no score without those before them: set "
            "loss.code_share = 0, or evaluation.candidates = 500"
        ]
    return []


def faults_of_candidates(facts: CodeFacts, evaluation: EvaluationConfig) -> list[str]:
    """Return what makes no sense of candidates, each with what to do.

    Args:
        facts: of the run.
        evaluation: how lists are made.
    """
    candidates = evaluation.candidates
    if candidates is None:
        return []
    if not facts.has_heads:
        return [f"evaluation.candidates: model.kind = '{facts.kind}' proposes no items: {_LEAVE_CANDIDATES}"]
    if not facts.scores_items:
        return [f"evaluation.candidates: items have no vectors that decide among them: {_LEAVE_CANDIDATES}"]
    faults: list[str] = []
    if not facts.predicts_codes:
        faults.append(f"evaluation.candidates: are proposed by their codes: {facts.advice}")
    if candidates < facts.longest:
        faults.append(
            f"evaluation.candidates: {candidates} items do not fill lists of {facts.longest}: set "
            f"evaluation.candidates = {facts.longest} or more, or shorten evaluation.cutoffs"
        )
    return faults
