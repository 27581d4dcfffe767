"""Finished retrievers that score together."""

from typing import NamedTuple

from torch import nn

from trec_semid.checkpoints.folder import latest_step
from trec_semid.checkpoints.load import load_checkpoint, read_loop
from trec_semid.checkpoints.tensors import Trainable
from trec_semid.core.config import load_config
from trec_semid.core.errors import ConfigError
from trec_semid.data.schema import Dataset
from trec_semid.models.ensemble import EnsembleConfig
from trec_semid.models.retriever import Retriever
from trec_semid.runtime.ranks import Ranks, broadcast_object
from trec_semid.runtime.runs import RunFolder
from trec_semid.training.finetune.tokenizer import load_learned
from trec_semid.training.retrieval.evaluation import Evaluator
from trec_semid.training.retrieval.placed import place_retriever, retriever_of
from trec_semid.training.retrieval.search import EnsembleSearch, ExactSearch, penalties_of
from trec_semid.training.retrieval.setup import RetrieveConfig, RetrieveInputs, read_inputs


class Finished(NamedTuple):
    """A finished run."""

    search: ExactSearch
    model: nn.Module


def build_ensemble(
    ensemble: EnsembleConfig, config: RetrieveConfig, inputs: RetrieveInputs, folder: RunFolder, ranks: Ranks
) -> Evaluator:
    """Place every member with its best weights; plans go into `members/<n>` of the run.

    Raises:
        ConfigError: see `place_finished`.
        CheckpointError: see there.
    """
    members = [
        place_finished(run, config, inputs, RunFolder(folder.path("members", str(number)), "retrieve"), ranks)
        for number, run in enumerate(ensemble.runs)
    ]
    penalties = penalties_of(inputs.data, config.evaluation.unseen_penalty, ranks)
    search = EnsembleSearch([member.search for member in members], penalties)
    return Evaluator(search, nn.ModuleList(member.model for member in members), inputs.data, config, ranks)


def expect_members(ensemble: EnsembleConfig, config: RetrieveConfig) -> None:
    """Check finished runs before anything is written.

    Raises:
        ConfigError: see `place_finished`.
    """
    for run in ensemble.runs:
        _config_of(run, config)
        _newest_step(run)


def place_finished(
    run: str, config: RetrieveConfig, inputs: RetrieveInputs, plans: RunFolder, ranks: Ranks
) -> Finished:
    """Return a finished run with its best weights, to be evaluated by `config`, not by its own.

    Args:
        run: its folder.
        config: of what it is for; has to read the same histories.
        inputs: of `config`; the run has to be of the same data.
        plans: where plans are written.
        ranks: all of them place it together.

    Raises:
        ConfigError: the run is of other data or codes than are there now, reads other histories, or cannot
            score the whole catalogue.
        CheckpointError: its best checkpoint is gone or damaged.
    """
    member = _config_of(run, config)
    read = read_inputs(member)
    tokenizer = load_learned(member.tuning, member.semantic_ids, read.semantic_ids)
    placed = place_retriever(member, read, tokenizer, plans, ranks)
    _take_best(run, placed.model, read.checksums)
    retriever = retriever_of(placed.model)
    assert isinstance(retriever, Retriever), "others are refused by _config_of"
    return Finished(ExactSearch(retriever, placed.feed, read.data, ranks), placed.model)


def _config_of(run: str, config: RetrieveConfig) -> RetrieveConfig:
    folder = RunFolder(run, "retrieve")
    member = load_config(RetrieveConfig, [folder.path("config.toml")])
    if member.model.kind not in ("sasrec", "heterrec", "rpg"):
        raise ConfigError(f"model.runs: {run} is {member.model.kind}, which does not score the catalogue.")
    if Dataset(member.dataset).facts.checksum != Dataset(config.dataset).facts.checksum:
        raise ConfigError(f"model.runs: {run} reads other data than {config.dataset}.")
    wanted, its = config.sequences, member.sequences
    if (its.max_len, its.events) != (wanted.max_len, wanted.events):
        raise ConfigError(
            f"model.runs: {run} reads other histories. Set sequences.max_len = {its.max_len} and "
            f"sequences.events = '{its.events}'."
        )
    return member


def _take_best(run: str, model: nn.Module, inputs: dict[str, str]) -> None:
    checkpoints = RunFolder(run, "retrieve").path("checkpoints")
    newest = broadcast_object(_newest_step(run))
    loop = read_loop(checkpoints, newest)
    if loop["inputs"] != inputs:
        raise ConfigError(f"model.runs: {run} was trained on other data or codes than are there now.")
    load_checkpoint(checkpoints, Trainable(model), step=loop["selection"]["best_step"])


def _newest_step(run: str) -> int:
    newest = latest_step(RunFolder(run, "retrieve").path("checkpoints"))
    if newest is None:
        raise ConfigError(f"model.runs: {run} has no checkpoint left.")
    return newest
