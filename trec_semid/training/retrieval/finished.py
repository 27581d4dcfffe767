"""Finished retrievers, placed again: one as it is or at another step, or several that score together."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, final

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError
from torch import Tensor, nn

from trec_semid.core.config import Config, validate_saved
from trec_semid.core.errors import ConfigError
from trec_semid.core.explain import explain
from trec_semid.data.schema import Dataset, Split
from trec_semid.evaluation.list_metrics import ListMetricsConfig
from trec_semid.evaluation.ranking import Named
from trec_semid.evaluation.strata import StrataConfig
from trec_semid.runtime.ranks import Ranks
from trec_semid.runtime.runs import RunFolder
from trec_semid.search.ann import IndexConfig
from trec_semid.search.code_prior import CodePriorConfig
from trec_semid.search.graph import GraphConfig
from trec_semid.search.interests import InterestsConfig
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.training.finished import (
    FinishedRun,
    config_of,
    expect_checkpoint,
    expect_codes_are_read,
    expect_same_inputs,
    load_weights,
    parse_run,
)
from trec_semid.training.matched_codes import read_semantic_ids
from trec_semid.training.retrieval.code_faults import takes_prior
from trec_semid.training.retrieval.evaluation.asked import AskedModel, penalties_of
from trec_semid.training.retrieval.evaluation.evaluator import Evaluator
from trec_semid.training.retrieval.evaluation.listing import (
    ExactLister,
    PopularityLister,
    lister_of,
    merging_lister_of,
)
from trec_semid.training.retrieval.inputs import RetrieveInputs, read_inputs
from trec_semid.training.retrieval.placed import place_retriever
from trec_semid.training.retrieval.setup import RetrieveConfig
from trec_semid.training.run import parameter_counts


class RetrievalSettings(Config):
    """What counts as retrieved; keys that are not given are the first run's own."""

    cutoffs: Annotated[tuple[PositiveInt, ...] | None, Field(min_length=1)] = None
    masks_history: bool | None = None
    unseen_penalty: NonNegativeFloat | None = None
    beam_width: NonNegativeInt | None = None
    """Of a beam over codes; 0 has none, whatever the run did."""
    candidates: NonNegativeInt | None = None
    """Items that codes propose and item vectors order; 0 scores every item, or every tuple of a beam."""
    code_prior: CodePriorConfig | None = None
    """By which independent heads are corrected; of `kind = "none"` by nothing, whatever the run did."""
    graph: GraphConfig | None = None
    """A graph between items of like codes; of `kind = "none"` none is searched, whatever the run did."""
    interests: InterestsConfig | None = None
    """How the lists of a user's interests become one."""
    index: IndexConfig | None = None
    """An index over item vectors; of `kind = "none"` every item is scored, whatever the run did."""
    list_metrics: ListMetricsConfig | None = None
    """What is said of interests and lists beside where targets stand."""


class PlacedRun(NamedTuple):
    """A finished run with its weights in place."""

    asked: AskedModel
    model: nn.Module
    """On its ranks, as it was trained."""


class Member(NamedTuple):
    """A finished run that scores together with others."""

    run: FinishedRun
    config: RetrieveConfig


@final
class FinishedRetrievers:
    """Finished retrieve runs of one dataset: one, or several as an ensemble."""

    def __init__(self, runs: Sequence[FinishedRun], settings: RetrievalSettings, **changes: Any) -> None:
        """Read configs and inputs of the runs.

        Args:
            runs: that score together, or one.
            settings: of evaluation.
            changes: keys of their configs that say where things lie now, such as `dataset`.

        Raises:
            ConfigError: settings that a run's method cannot be asked by, or runs that cannot score together.
            DataError: what they read is gone or damaged.
        """
        self.runs = runs
        named = [Member(run, config_of(RetrieveConfig, run, changes)) for run in runs]
        first = named[0].config
        own = first.evaluation.model_dump() | settings.model_dump(exclude_none=True)
        own |= {name: own[name] or None for name in ("beam_width", "candidates")}
        if settings.code_prior is None:
            own["code_prior"] = _prior_of_candidates(first, own)
        shared = {"evaluation": own}
        if len(runs) > 1:
            # How the first run merges or looks up its own lists says nothing of scores of several.
            beam = ("beam_width",) if own["candidates"] and settings.candidates is None else ()
            for key in ("interests", "index", "candidates", "code_prior", "graph", *beam):
                own[key] = getattr(settings, key) or None
            shared |= {"model": {"kind": "ensemble", "runs": [run.name for run in runs]}}
            inherited = first.model_dump(include={"dataset", "run", "seed", "verify", "sequences"})
            trained = {"train": first.train.model_dump(include={"select_by", "evaluation_batch_size"})}
            self.config = _validated({**inherited, **trained, **shared}, runs[0].uri)
        else:
            values = {**first.model_dump(), **shared}
            self.config = _validated(values, runs[0].uri, has=first.faults_together())
            _expect_weights(runs[0], first)
        # The runs of an ensemble that has been asked before are read where the data lies now, too.
        self._members = named if len(runs) > 1 else members_of(first, changes) or named
        expect_codes_are_read([member.config for member in self._members], changes.get("semantic_ids"))
        if self.config.retriever.members:
            expect_members(self._members, self.config)
        self._inputs = read_inputs(first if len(runs) > 1 else self.config)
        expect_same_inputs(runs[0], self._inputs.checksums, self._inputs.semantic_ids)

    @property
    def dataset(self) -> Dataset:
        """That all of them read."""
        return self._inputs.dataset

    @property
    def semantic_ids(self) -> SemanticIds | None:
        """The map that the first run reads; None where it reads none."""
        return self._inputs.semantic_ids

    def asked_config(self) -> dict[str, Any]:
        """Return what the runs' config amounts to with the settings of now."""
        return self.config.model_dump(mode="json", exclude_none=True)

    def write(
        self,
        folder: RunFolder,
        ranks: Ranks,
        *,
        splits: tuple[Split, ...],
        strata: StrataConfig,
        batch_size: int | None,
    ) -> Named:
        """Place the models, list the catalogue for users of splits, and write where targets stand.

        Args:
            folder: where plans and predictions are written.
            ranks: all of them list together.
            splits: whose users are asked for.
            strata: how targets are told apart.
            batch_size: users of a global batch; the first run's where not given.

        Raises:
            ConfigError: a run was trained on other data or codes than are there now.
            CheckpointError: a checkpoint is gone or damaged.
        """
        config = self.config
        if batch_size:
            train = config.train.model_copy(update={"evaluation_batch_size": batch_size})
            config = config.model_copy(update={"train": train})
        if config.retriever.members:
            evaluator = ensemble_evaluator(self._members, config, self._inputs, folder, ranks)
        elif not config.learns:
            evaluator = evaluator_without_model(config, self._inputs, folder, ranks)
        else:
            asked, model = place_finished(self._members[0], folder, ranks)
            lister = lister_of(asked, config.evaluation)
            merging = merging_lister_of(asked, config.evaluation, lister)
            evaluator = Evaluator(lister, model, self._inputs.data, config, ranks, merging, asked)
        metrics, counts = evaluator.write(folder, splits=splits, strata=strata)
        if config.learns and evaluator.model is not None:
            counts = counts | parameter_counts(evaluator.model)
        return metrics, counts


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
    members = members_of(config, {})
    if members:
        return ensemble_evaluator(members, config, inputs, plans, ranks)
    return Evaluator(PopularityLister(inputs.data, ranks), None, inputs.data, config, ranks)


def ensemble_evaluator(
    members: Sequence[Member], config: RetrieveConfig, inputs: RetrieveInputs, plans: RunFolder, ranks: Ranks
) -> Evaluator:
    """Return what lists by the mean of the members' scores.

    Args:
        members: each with its best weights, or those of its step.
        config: whose `evaluation` counts.
        inputs: whose users are asked for.
        plans: where plans of members are written, as `members/<n>`.
        ranks: all of them call it together.
    """
    plans = RunFolder(plans.path("members"), "retrieve")
    penalties = penalties_of(inputs.data, config.evaluation.unseen_penalty, ranks)
    lister, models = ensemble_lister(members, plans, ranks, penalties)
    return Evaluator(lister, models, inputs.data, config, ranks)


def ensemble_lister(
    members: Sequence[Member], plans: RunFolder, ranks: Ranks, penalties: Tensor | None
) -> tuple[ExactLister, nn.ModuleList]:
    """Return what lists by the mean of the members' scores, and their models, placed on the ranks.

    Args:
        members: each with its best weights, or those of its step.
        plans: where plans of members are written, as `<n>`.
        ranks: all of them call it together.
        penalties: (N,) taken off the scores; None where nothing is.

    Raises:
        ConfigError: see `place_finished`.
        CheckpointError: see there.
    """
    placed = [
        place_finished(member, RunFolder(plans.path(str(number)), "retrieve"), ranks)
        for number, member in enumerate(members)
    ]
    interests = [member.config.evaluation.interests_of(member.config.retriever) for member in members]
    lister = ExactLister([member.asked for member in placed], penalties, interests)
    return lister, nn.ModuleList(member.model for member in placed)


def members_of(config: RetrieveConfig, changes: Mapping[str, Any]) -> list[Member]:
    """Return the finished runs of an ensemble with their configs; none of another method.

    Args:
        config: of the ensemble.
        changes: keys of the runs' configs that say where things lie now.

    Raises:
        ConfigError: a run is not finished.
    """
    return members_named(config.retriever.members, changes)


def members_named(
    runs: Sequence[str], changes: Mapping[str, Any], *, key: str = "model.runs"
) -> list[Member]:
    """Return finished runs that score together, with their configs.

    Args:
        runs: their folders, or those of steps.
        changes: keys of their configs that say where things lie now.
        key: of the config that names them, which an error names.

    Raises:
        ConfigError: a run is not finished.
    """
    members: list[Member] = []
    for place in runs:
        try:
            run = parse_run(place)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None
        members.append(Member(run, config_of(RetrieveConfig, run, changes)))
    return members


def expect_members(members: Sequence[Member], config: RetrieveConfig, *, key: str = "model.runs") -> None:
    """Check finished runs that score together before anything is written.

    Args:
        members: the runs.
        config: of the ensemble, or of whom they teach.
        key: of it, that names them.

    Raises:
        ConfigError: a run does not score the catalogue, reads other data or other histories than that
            config, or has no checkpoint left.
    """
    for run, member in members:
        if not member.scores_catalogue:
            remedy = " Name its runs instead." if member.retriever.members else ""
            told = f"{key}: {run.uri} is {member.model.kind}, which does not score the catalogue.{remedy}"
            raise ConfigError(told)
        dataset = Dataset(member.dataset)
        if dataset.facts.checksum != Dataset(config.dataset).facts.checksum:
            raise ConfigError(f"{key}: {run.uri} reads other data than {config.dataset}.")
        ours, theirs = config.sequences, member.sequences
        if (theirs.max_len, theirs.events) != (ours.max_len, ours.events):
            raise ConfigError(
                f"{key}: {run.uri} reads other histories. Set sequences.max_len = {theirs.max_len} and "
                f"sequences.events = '{theirs.events}'."
            )
        _expect_weights(run, member)
        ids = read_semantic_ids(member.semantic_ids, dataset) if member.semantic_ids else None
        codes = {"semantic_ids": ids.checksum()} if ids else {}
        expect_same_inputs(run, {"dataset": dataset.facts.checksum, **codes}, ids)


def place_finished(member: Member, plans: RunFolder, ranks: Ranks) -> PlacedRun:
    """Return a finished run that has learnt something, with the weights that count.

    Args:
        member: the run, and its config.
        plans: where plans are written.
        ranks: all of them place it together.

    Raises:
        ConfigError: the run was trained on other data or codes than are there now, or has no checkpoint left.
        CheckpointError: its checkpoint is gone or damaged.
    """
    run, config = member
    inputs = read_inputs(config)
    placed = place_retriever(config, inputs, plans, ranks)
    load_weights(run, placed.model, inputs.checksums)
    return PlacedRun(placed.asked(config.retriever, inputs.data, ranks), placed.model)


def _prior_of_candidates(first: RetrieveConfig, own: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a run's codes are corrected by where settings name nothing: its own, or naive Bayes.

    The prior of its candidates goes with these where there are none now.
    """
    had, has = first.evaluation.candidates, own["candidates"]
    if has and not had and own["code_prior"] is None and takes_prior(first.code_facts, first.loss):
        return CodePriorConfig().model_dump()
    return None if had and not has else own["code_prior"]


def _validated(values: dict[str, Any], run: str, has: Sequence[str] = ()) -> RetrieveConfig:
    """Return a config with other settings of evaluation, which its method may refuse.

    Args:
        values: of the config.
        run: it is of.
        has: faults that the run has as it is, which are no reason to refuse it.

    Raises:
        ConfigError: says what to do.
    """
    evaluation = values["evaluation"]
    # Training selected by a metric whose length has to be among its own; nothing is selected now.
    selected = int(values["train"]["select_by"].rpartition("@")[2])
    with_selected = {**evaluation, "cutoffs": (*evaluation["cutoffs"], selected)}
    try:
        config = validate_saved(RetrieveConfig, {**values, "evaluation": with_selected})
    except ValidationError as error:
        raise ConfigError(explain(error.errors(), RetrieveConfig, {}, [run], values)) from None
    if faults := [fault for fault in config.faults_together() if fault not in has]:
        told = {"type": "value_error", "loc": (), "msg": "\n".join(faults)}
        raise ConfigError(explain([told], RetrieveConfig, {}, [run], values))
    asked = config.evaluation.model_copy(update={"cutoffs": tuple(evaluation["cutoffs"])})
    return config.model_copy(update={"evaluation": asked})


def _expect_weights(run: FinishedRun, config: RetrieveConfig) -> None:
    if not config.learns and run.step is not None:
        raise ConfigError(f"runs: {run.uri} is {config.model.kind}, which has no steps. Name the run.")
    if config.learns:
        expect_checkpoint(run)
