"""What of a config makes no sense of items and their codes: what is read, predicted, or proposes lists."""

from typing import NamedTuple

from trec_semid.core.config import faults_of_unread
from trec_semid.core.errors import ConfigError
from trec_semid.data.retrieval.dataset import ItemConfig
from trec_semid.models.live_codes import FinetuneConfig
from trec_semid.models.retriever import LossConfig
from trec_semid.search.code_prior import CodePriorConfig
from trec_semid.training.retrieval.evaluation_config import EvaluationConfig

OF_MIXTURES = ("content_experts", "content_hidden_dim")
"""Keys of `item` that a mixture alone reads."""
OF_CODE_LOSSES = ("code_share", "code_temperature")
"""Keys of `loss` that only a method that predicts codes reads."""
_LEAVE_HEADS, _LEAVE_CANDIDATES = "leave out loss.code_heads", "leave out evaluation.candidates"


class CodeFacts(NamedTuple):
    """What a run has to do with codes."""

    kind: str
    """Of the model."""
    has_ids: bool
    """Whether there are semantic IDs."""
    are_items_codes: bool
    """Whether the model reads and predicts codes and nothing else."""
    has_heads: bool
    """Whether it has heads where it predicts codes."""
    reads_codebook: bool
    """Whether it reads what a codebook rebuilds."""
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


def faults_of_items(facts: CodeFacts, item: ItemConfig, finetune: FinetuneConfig | None) -> list[str]:
    """Return what makes no sense of what items are made of, each with what to do.

    Args:
        facts: of the run.
        item: what stands for an item beside its codes.
        finetune: of the tokenizer that gives the codes; None where it is frozen.
    """
    faults = [*_faults_of_content(item), *_faults_of_rare_items(facts, item)]
    other_parts = item.id or item.fields or item.content
    if not (facts.has_ids and item.codes) and not other_parts and not facts.are_items_codes:
        remedy = "set item.codes = true" if facts.has_ids else "give semantic_ids"
        faults.append(
            f"items are made of nothing: {remedy}, or set item.id = true, or give item.fields or item.content"
        )
    if facts.are_items_codes and other_parts:
        faults.append(
            f"model.kind = '{facts.kind}' reads codes alone: set item.id = false, item.fields = [], "
            "item.content = []"
        )
    if not item.codes and (facts.are_items_codes or not facts.predicts_codes):
        cause = "nothing else is read" if facts.are_items_codes else "codes are not predicted either"
        faults.append(f"item.codes = false: {cause}: set item.codes = true")
    return [*faults, *(_faults_of_finetune(facts, item, finetune) if finetune else [])]


def _faults_of_finetune(facts: CodeFacts, item: ItemConfig, finetune: FinetuneConfig) -> list[str]:
    faults: list[str] = []
    if not item.codes and facts.predicts_codes and not facts.are_items_codes:
        faults.append("item.codes = false: codes that nobody reads cannot be tuned: set item.codes = true")
    if not facts.has_ids:
        faults.append("finetune needs codes to tune: give semantic_ids")
    if facts.reads_codebook:
        faults.append(
            "finetune: a tokenizer that is tuned has no codebook whose codes add up, which model.light_reads "
            "asks for: leave out finetune, or set model.light_reads = 'rows'"
        )
    if finetune.recent_items != "all":
        faults.append(
            "finetune.recent_items: a retriever chooses the codes of all named items afresh: set "
            "finetune.recent_items = 'all'"
        )
    if finetune.moves_targets and not facts.scores_items:
        faults.append(
            "finetune.moves_targets: is of items that are scored, and codes alone are predicted: leave it out"
        )
    return faults


def _faults_of_rare_items(facts: CodeFacts, item: ItemConfig) -> list[str]:
    has_other_parts = bool((facts.has_ids and item.codes) or item.fields or item.content)
    if not item.id_min_events or (item.id and has_other_parts):
        return []
    what = "items are nothing but their IDs" if item.id else "items have no IDs"
    return [f"item.id_min_events: {what}: set item.id_min_events = 0"]


def faults_of_code_lists(facts: CodeFacts, loss: LossConfig, evaluation: EvaluationConfig) -> list[str]:
    """Return what makes no sense of a graph and of a prior of codes, each with what to do.

    Args:
        facts: of the run.
        loss: its loss.
        evaluation: how lists are made.
    """
    return [*_faults_of_graph(facts, loss, evaluation), *_faults_of_prior(facts, loss, evaluation)]


def _faults_of_graph(facts: CodeFacts, loss: LossConfig, evaluation: EvaluationConfig) -> list[str]:
    graph = evaluation.graph
    if graph is None or not evaluation.has_graph:
        return []
    leave = "leave out evaluation.graph"
    if not facts.has_heads:
        return [f"evaluation.graph: model.kind = '{facts.kind}' has no codes for it: {leave}"]
    if facts.scores_items or not facts.predicts_codes:
        return [
            f"evaluation.graph: is followed by scores of codes alone: {leave}, or set loss.item_weight = 0"
        ]
    faults: list[str] = []
    if facts.has_beam or evaluation.candidates:
        faults.append(f"evaluation.graph: a beam makes the lists: {leave}")
    elif loss.code_heads == "chained":
        faults.append(f"evaluation.graph: chained codes give an item no score: {leave}")
    if graph.pool < facts.longest:
        faults.append(
            f"evaluation.graph.pool: {graph.pool} items do not fill lists of {facts.longest}: set "
            f"evaluation.graph.pool = {facts.longest} or more, or shorten evaluation.cutoffs"
        )
    return faults


def faults_of_start(facts: CodeFacts, start_codes: str) -> list[str]:
    """Refuse to go on with heads that predict codes which are others now."""
    if start_codes == "anew" and (facts.predicts_codes or facts.are_items_codes):
        told = "heads that predict codes would go on with other ones: begin without start_from"
        return [f"start_codes = 'anew': {told}"]
    return []


def faults_of_states(facts: CodeFacts, evaluation: EvaluationConfig) -> list[str]:
    """Return what makes no sense of what is said of states, with what to do.

    Args:
        facts: of the run.
        evaluation: what is said of lists and states.
    """
    if not evaluation.list_metrics.state_rank or facts.has_heads:
        return []
    return [
        f"evaluation.list_metrics.state_rank: model.kind = '{facts.kind}' has no one state a user: set "
        "evaluation.list_metrics.state_rank = false"
    ]


def _faults_of_content(item: ItemConfig) -> list[str]:
    if item.content_projection == "linear":
        remedy = "set item.content_projection = 'mixture'" if item.content else None
        return faults_of_unread(item, "item", OF_MIXTURES, "a linear map has no experts", remedy)
    if not item.content:
        return [
            "item.content_projection: there is no content: set item.content_projection = 'linear'",
            *faults_of_unread(item, "item", OF_MIXTURES, "there is no content"),
        ]
    if not item.content_is_unit:
        return [
            "item.content_is_unit: a mixture divides content by the root of its width: set "
            "item.content_is_unit = true"
        ]
    return []


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


def _faults_of_prior(facts: CodeFacts, loss: LossConfig, evaluation: EvaluationConfig) -> list[str]:
    if not evaluation.has_code_prior:
        return []
    leave = "leave out evaluation.code_prior"
    if not facts.has_heads or not facts.predicts_codes:
        return [f"evaluation.code_prior: no heads predict codes that it could correct: {leave}"]
    if loss.code_heads == "chained":
        return [f"evaluation.code_prior: chained codes know those before them: {leave}"]
    if facts.scores_items and not evaluation.candidates:
        return [
            f"evaluation.code_prior: is of codes that list alone or propose, and items are scored: {leave}, "
            "or set evaluation.candidates = 500"
        ]
    return []


def takes_prior(facts: CodeFacts, loss: LossConfig) -> bool:
    """Return whether codes are predicted apart from each other, so that a prior corrects them.

    Args:
        facts: of the run.
        loss: of its codes.
    """
    return facts.has_heads and facts.predicts_codes and loss.code_heads != "chained"


def settled_evaluation(
    facts: CodeFacts, loss: LossConfig, evaluation: EvaluationConfig, *, is_saved: bool
) -> EvaluationConfig:
    """Return the evaluation with its `code_prior` named where codes propose candidates and it was not.

    It is naive Bayes. A run that says nothing of it was made when candidates were those of the sum alone.

    Args:
        facts: of the run.
        loss: of its codes.
        evaluation: as it was given.
        is_saved: whether a run has it already.
    """
    if not evaluation.candidates or evaluation.code_prior or not takes_prior(facts, loss):
        return evaluation
    prior = CodePriorConfig(kind="none" if is_saved else "bayes")
    return evaluation.model_copy(update={"code_prior": prior})


def faults_of_width(evaluation: EvaluationConfig, longest: int) -> list[str]:
    """Return what is too narrow about a beam, with what to do: its tuples are the lists, or the candidates.

    Args:
        evaluation: how lists are made.
        longest: of the lists.
    """
    width, candidates = evaluation.beam_width, evaluation.candidates or 0
    if width is None or width >= max(longest, candidates):
        return []
    if candidates > longest:
        return [
            f"evaluation.beam_width: {width} tuples do not propose {candidates} items: set "
            f"evaluation.beam_width = {candidates} or more, or lower evaluation.candidates"
        ]
    return [
        f"evaluation.beam_width: {width} tuples do not fill lists of {longest}: set "
        f"evaluation.beam_width = {longest} or more, or shorten evaluation.cutoffs"
    ]


def expect_facets(loss: LossConfig, num_positions: int) -> None:
    """Refuse facets that a tuple of so many codes has not.

    Raises:
        ConfigError: says which numbers go.
    """
    if num_positions % loss.code_facets:
        raise ConfigError(
            f"loss.code_facets: {num_positions} codes make no {loss.code_facets} facets of one length. Set a "
            f"number that divides {num_positions}."
        )
