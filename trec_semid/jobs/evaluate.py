"""`trec-semid evaluate`: finished runs asked again, under other settings of evaluation, without training."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Protocol, Self

from pydantic import Field, PositiveInt, model_validator

from trec_semid.core.config import Place
from trec_semid.core.errors import ConfigError
from trec_semid.core.identity import MayChange, SamePlace
from trec_semid.core.paths import read_bytes
from trec_semid.data.schema import Dataset, Split, VerifyConfig
from trec_semid.evaluation.evaluated import EVALUATED
from trec_semid.evaluation.ranking import Named
from trec_semid.evaluation.strata import StrataConfig
from trec_semid.runtime.logs import say
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.ranks import Ranks, barrier, process_group
from trec_semid.runtime.runs import RunFolder
from trec_semid.tokenizers.generations.store import resolve
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.training.config import TrainingRunConfig
from trec_semid.training.finished import FinishedRun, job_of, parse_run
from trec_semid.training.ranking.finished import FinishedRankers, RankingSettings
from trec_semid.training.retrieval.finished import FinishedRetrievers, RetrievalSettings
from trec_semid.training.run import (
    Trained,
    generation_read,
    on_main,
    refuse_other_run,
    tell_results,
    training_ranks,
    write_results,
)


class EvaluateConfig(VerifyConfig):
    """What `trec-semid evaluate` reads."""

    run: Annotated[Place, MayChange()]
    """Folder to write: metrics and predictions of its own; the runs that are asked stay as they are."""
    runs: Annotated[list[Place], SamePlace()] = Field(min_length=1)
    """Finished runs of `rank`, or of `retrieve`, with their best weights; or a step of one, named as
    `runs/x/checkpoints/step-12`. Several score together, as one ensemble."""
    splits: Annotated[tuple[Split, ...], Field(min_length=1)] = ("valid", "test")
    dataset: Annotated[Place | None, MayChange()] = None
    """Where the runs' dataset lies now, if not where they read it."""
    semantic_ids: Annotated[Place | None, MayChange()] = None
    """Where their semantic IDs lie now, likewise; of a store, a generation of only additions to theirs."""
    batch_size: Annotated[PositiveInt | None, MayChange()] = None
    """Rows, or users, of a global batch; the first run's `train.evaluation_batch_size` where not given."""
    strata: StrataConfig = StrataConfig()
    ranking: RankingSettings | None = None
    """Of rankers."""
    retrieval: RetrievalSettings | None = None
    """Of retrievers."""

    @model_validator(mode="after")
    def _names_no_split_twice(self) -> Self:
        if "train" in self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError(f"splits: 'valid' and 'test', each once (got {', '.join(self.splits)})")
        return self


class _Asked(Protocol):
    """Finished runs of one kind, placed when they are asked."""

    runs: Sequence[FinishedRun]

    @property
    def config(self) -> TrainingRunConfig:
        """Of the first run."""
        ...

    @property
    def dataset(self) -> Dataset:
        """That all of them read."""
        ...

    @property
    def semantic_ids(self) -> SemanticIds | None:
        """That the first run reads."""
        ...

    def asked_config(self) -> dict[str, Any]:
        """Return what the runs' config amounts to now."""
        ...

    def write(
        self,
        folder: RunFolder,
        ranks: Ranks,
        *,
        splits: tuple[Split, ...],
        strata: StrataConfig,
        batch_size: int | None,
    ) -> Named:
        """Place the models, write predictions of the splits; return metrics and counts."""
        ...


def run(config: EvaluateConfig) -> Trained:
    """Evaluate, or leave a finished evaluation as it is.

    Raises:
        SemidError: runs, settings or folder that cannot be used; nothing is written then.
    """
    with process_group() as ranks:
        if place := config.semantic_ids:  # read once, for all ranks: another may be published meanwhile
            pinned = on_main(ranks, partial(resolve, place))
            config = config.model_copy(update={"semantic_ids": pinned})
        return _evaluate(config, _read(config))


def _evaluate(config: EvaluateConfig, asked: _Asked) -> Trained:
    with training_ranks(asked.config.train) as ranks, own_folder(config.run, "evaluate", ranks):
        folder = RunFolder(config.run, "evaluate")
        inputs = {"dataset": asked.dataset.facts.checksum, "runs": _checksum(asked.runs), **_settled(asked)}
        if on_main(ranks, partial(folder.is_finished, config, inputs)):
            if ranks.is_main:
                say(f"{config.run} is already done")
            return tell_results(folder, ranks)
        on_main(ranks, partial(refuse_other_run, folder, config))
        if ranks.is_main:
            folder.start(config, inputs, more=_generation(asked))
            folder.write_json(EVALUATED, _facts(asked, config.splits))
        barrier()
        results = asked.write(
            folder, ranks, splits=config.splits, strata=config.strata, batch_size=config.batch_size
        )
        write_results(folder, asked.dataset, asked.config.seed, ranks, results)
        return tell_results(folder, ranks)


def _settled(asked: _Asked) -> dict[str, str]:
    """Return a default that the runs' other keys decide, which the config of this verb does not say.

    It counts as an input: an evaluation that is there with another one says nothing of this one.
    """
    evaluation = asked.asked_config().get("evaluation", {})
    prior = evaluation.get("code_prior") if evaluation.get("candidates") else None
    return {"code_prior": json.dumps(prior, sort_keys=True)} if prior else {}


def _generation(asked: _Asked) -> dict[str, object]:
    read = asked.semantic_ids and asked.semantic_ids.generation
    return generation_read(read.as_read(str(asked.config.semantic_ids)) if read else None)


def _read(config: EvaluateConfig) -> _Asked:
    """Return the runs with their configs and data; refuse settings of the other kind."""
    runs = [parse_run(place) for place in config.runs]
    if twice := [run.name for number, run in enumerate(runs) if run in runs[:number]]:
        raise ConfigError(f"runs: {twice[0]} is named twice, and would count twice. Name it once.")
    jobs = {run.uri: job_of(run) for run in runs}
    first = jobs[runs[0].uri]
    for uri, job in jobs.items():
        if job not in ("rank", "retrieve"):
            raise ConfigError(f"runs: {uri} is a run of {job}. Name runs of rank or of retrieve.")
        if job != first:
            raise ConfigError(f"runs: {runs[0].uri} is a run of {first}, {uri} of {job}. Name one kind.")
    where = {"dataset": config.dataset, "semantic_ids": config.semantic_ids, "verify": config.verify}
    if first == "rank":
        _expect_unset("retrieval", config.retrieval, first)
        return FinishedRankers(runs, config.ranking or RankingSettings(), **where)
    _expect_unset("ranking", config.ranking, first)
    return FinishedRetrievers(runs, config.retrieval or RetrievalSettings(), **where)


def _expect_unset(key: str, settings: object, job: str) -> None:
    if settings is not None:
        raise ConfigError(f"{key}: the runs are of {job}: leave [{key}] out.")


def _checksum(runs: Sequence[FinishedRun]) -> str:
    """Return a checksum of what the runs came to, and of the steps that are asked."""
    digest = hashlib.sha256()
    for run in runs:
        digest.update(f"{run.step}:".encode() + read_bytes(run.path("metrics.json")))
    return digest.hexdigest()


def _facts(asked: _Asked, splits: Sequence[Split]) -> dict[str, Any]:
    steps = {"step": asked.runs[0].step} if len(asked.runs) == 1 and asked.runs[0].step else {}
    return {
        "job": job_of(asked.runs[0]),
        "runs": [{"run": run.uri, "step": run.step} for run in asked.runs],
        "splits": list(splits),
        "config": {**asked.asked_config(), **steps},
    }
