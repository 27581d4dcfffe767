"""Finished runs, placed again: one as it is or at another step, or several that score together."""

from typing import NamedTuple

from pydantic import ValidationError
from torch import nn

from trec_semid.checkpoints.folder import latest_step
from trec_semid.checkpoints.load import load_checkpoint, read_loop
from trec_semid.checkpoints.tensors import Trainable
from trec_semid.core.config import load_config
from trec_semid.core.errors import ConfigError
from trec_semid.core.explain import explain
from trec_semid.data.schema import Dataset
from trec_semid.runtime.ranks import Ranks, broadcast_object
from trec_semid.runtime.runs import RunFolder
from trec_semid.training.finetune.tokenizer import load_learned
from trec_semid.training.retrieval.evaluation import Evaluator
from trec_semid.training.retrieval.listing import (
    AskedModel,
    ExactLister,
    PopularityLister,
    lister_of,
    penalties_of,
)
from trec_semid.training.retrieval.placed import place_retriever
from trec_semid.training.retrieval.setup import (
    EvaluationConfig,
    RetrieveConfig,
    RetrieveInputs,
    read_inputs,
)


class Finished(NamedTuple):
    """A finished run with its weights in place."""

    asked: AskedModel
    model: nn.Module
    """On its ranks, as it was trained."""


def evaluator_of_run(
    run: str, evaluation: EvaluationConfig, plans: RunFolder, ranks: Ranks, *, step: int | None = None
) -> Evaluator:
    """Place a finished run with other settings of evaluation than its own, and return its evaluator.

    Args:
        run: its folder; of any kind, also one that learns nothing.
        evaluation: what counts as retrieved now.
        plans: where plans of its tables are written.
        ranks: all of them place it together.
        step: checkpoint to evaluate; its best one where not given.

    Raises:
        ConfigError: the run does not go with these settings, is of other data or codes than are there now,
            or has no checkpoint left.
        CheckpointError: the checkpoint is gone or damaged.
    """
    own = load_config(RetrieveConfig, [RunFolder(run, "retrieve").path("config.toml")])
    config = _evaluated_by(evaluation, own, run)
    inputs = read_inputs(config)
    if not config.learns:
        return evaluator_without_model(config, inputs, plans, ranks)
    asked, model = place_finished(run, plans, ranks, step=step)
    return Evaluator(lister_of(asked, evaluation), model, inputs.data, config, ranks)


def _evaluated_by(evaluation: EvaluationConfig, own: RetrieveConfig, run: str) -> RetrieveConfig:
    """Return a run's config with other settings of evaluation, which its method may refuse."""
    values = {**own.model_dump(), "evaluation": evaluation.model_dump()}
    try:
        return RetrieveConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error.errors(), RetrieveConfig, {}, [run], values)) from None


def evaluator_without_model(
    config: RetrieveConfig, inputs: RetrieveInputs, plans: RunFolder, ranks: Ranks
) -> Evaluator:
    """Return the evaluator of a method that learns nothing: of an ensemble's members, or of popularity.

    Args:
        config: whose method it is.
        inputs: of `config`.
        plans: where plans of members are written, as `members/<n>`.
        ranks: all of them call it together.

    Raises:
        ConfigError: see `place_finished`.
        CheckpointError: see there.
    """
    runs = config.retriever.members
    if not runs:
        return Evaluator(PopularityLister(inputs.data, ranks), None, inputs.data, config, ranks)
    expect_members(config)
    members = [
        place_finished(run, RunFolder(plans.path("members", str(number)), "retrieve"), ranks)
        for number, run in enumerate(runs)
    ]
    penalties = penalties_of(inputs.data, config.evaluation.unseen_penalty, ranks)
    lister = ExactLister([member.asked for member in members], penalties)
    return Evaluator(lister, nn.ModuleList(member.model for member in members), inputs.data, config, ranks)


def expect_members(config: RetrieveConfig) -> None:
    """Check the finished runs of an ensemble, if it is one, before anything is written.

    Raises:
        ConfigError: a run does not score the catalogue, reads other data or other histories than the
            ensemble, or has no checkpoint left.
    """
    for run in config.retriever.members:
        member = load_config(RetrieveConfig, [RunFolder(run, "retrieve").path("config.toml")])
        if not member.retriever.scores_catalogue:
            raise ConfigError(
                f"model.runs: {run} is {member.model.kind}, which does not score the catalogue."
            )
        if Dataset(member.dataset).facts.checksum != Dataset(config.dataset).facts.checksum:
            raise ConfigError(f"model.runs: {run} reads other data than {config.dataset}.")
        ours, theirs = config.sequences, member.sequences
        if (theirs.max_len, theirs.events) != (ours.max_len, ours.events):
            raise ConfigError(
                f"model.runs: {run} reads other histories. Set sequences.max_len = {theirs.max_len} and "
                f"sequences.events = '{theirs.events}'."
            )
        _newest_step(run)


def place_finished(run: str, plans: RunFolder, ranks: Ranks, *, step: int | None = None) -> Finished:
    """Return a finished run that has learnt something, with the weights of a step.

    Args:
        run: its folder.
        plans: where plans are written.
        ranks: all of them place it together.
        step: of its checkpoints; the best one where not given.

    Raises:
        ConfigError: the run was trained on other data or codes than are there now, or has no checkpoint left.
        CheckpointError: its checkpoint is gone or damaged.
    """
    config = load_config(RetrieveConfig, [RunFolder(run, "retrieve").path("config.toml")])
    inputs = read_inputs(config)
    tokenizer = load_learned(config.finetune, config.semantic_ids, inputs.semantic_ids)
    placed = place_retriever(config, inputs, tokenizer, plans, ranks)
    _load_step(run, placed.model, inputs.checksums, step)
    return Finished(placed.asked(config.retriever, inputs.data, ranks), placed.model)


def _load_step(run: str, model: nn.Module, inputs: dict[str, str], step: int | None) -> None:
    checkpoints = RunFolder(run, "retrieve").path("checkpoints")
    newest = broadcast_object(_newest_step(run))
    loop = read_loop(checkpoints, newest)
    if loop["inputs"] != inputs:
        raise ConfigError(f"run {run} was trained on other data or codes than are there now.")
    load_checkpoint(checkpoints, Trainable(model), step=step or loop["selection"]["best_step"])


def _newest_step(run: str) -> int:
    newest = latest_step(RunFolder(run, "retrieve").path("checkpoints"))
    if newest is None:
        raise ConfigError(f"run {run} has no checkpoint left.")
    return newest
