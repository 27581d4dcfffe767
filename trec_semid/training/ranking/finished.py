"""Finished rankers, placed again and asked for other scores than their runs wrote."""

from collections.abc import Sequence
from typing import Annotated, Any, final

from pydantic import Field, PositiveInt

from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError
from trec_semid.data.histories import Protocol
from trec_semid.data.schema import Dataset, Split
from trec_semid.evaluation.ranking import Named
from trec_semid.evaluation.strata import StrataConfig, strata_of_counts
from trec_semid.runtime.ranks import Ranks
from trec_semid.runtime.runs import RunFolder
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.training.finetune.finetuning import distinct_items
from trec_semid.training.finished import (
    FinishedRun,
    config_of,
    expect_checkpoint,
    expect_codes_are_read,
    expect_same_inputs,
    load_weights,
)
from trec_semid.training.placement import tell_plan
from trec_semid.training.ranking.predict import Scorer, Scoring, write_predictions
from trec_semid.training.ranking.setup import RankConfig, RankInputs, read_inputs
from trec_semid.training.ranking.task import place_ranker
from trec_semid.training.run import parameter_counts


class RankingSettings(Config):
    """How rankers are asked."""

    protocols: Annotated[tuple[Protocol, ...], Field(min_length=1)] = ("online", "frozen")
    """What the histories of rows hold: all events before (`online`), or training events only (`frozen`)."""


@final
class FinishedRankers:
    """Finished rank runs of one dataset that score together: the mean of their probabilities."""

    def __init__(self, runs: Sequence[FinishedRun], settings: RankingSettings, **changes: Any) -> None:
        """Read configs and inputs of the runs.

        Args:
            runs: that score together, or one.
            settings: how they are asked.
            changes: keys of their configs that say where things lie now, such as `dataset`.

        Raises:
            ConfigError: the runs read different datasets, or other data or codes than they were trained on,
                or one has no checkpoint left.
            DataError: what they read is gone or damaged.
        """
        self.runs, self.settings = runs, settings
        configs = [config_of(RankConfig, run, changes) for run in runs]
        # Streamed rows come in another order than those in memory, and all members score the same ones.
        are_streamed = all(config.stream == configs[0].stream for config in configs)
        self._configs = configs if are_streamed else [_in_memory(config) for config in configs]
        expect_codes_are_read(self._configs, changes.get("semantic_ids"))
        self._inputs = [read_inputs(config) for config in self._configs]
        for run, inputs in zip(runs, self._inputs, strict=True):
            if inputs.dataset.facts.checksum != self.dataset.facts.checksum:
                raise ConfigError(f"runs: {run.uri} reads other data than {runs[0].uri}.")
            expect_same_inputs(run, inputs.checksums, inputs.semantic_ids)
            expect_checkpoint(run)

    @property
    def config(self) -> RankConfig:
        """Of the first run."""
        return self._configs[0]

    @property
    def dataset(self) -> Dataset:
        """That all of them read."""
        return self._inputs[0].dataset

    @property
    def semantic_ids(self) -> SemanticIds | None:
        """The map that the first run reads; None where it reads none."""
        return self._inputs[0].semantic_ids

    def asked_config(self) -> dict[str, Any]:
        """Return the first run's config, and who scores with it: what a report names the arm by."""
        config = self.config.model_dump(mode="json", exclude_none=True)
        # Asked as its run was, a ranker is the same arm as its run.
        asked = self.settings.model_dump(mode="json", exclude_defaults=True)
        protocols = {"evaluation": asked} if asked else {}
        members = {"ensemble": [run.name for run in self.runs]} if len(self.runs) > 1 else {}
        return {**config, **protocols, **members}

    def write(
        self,
        folder: RunFolder,
        ranks: Ranks,
        *,
        splits: tuple[Split, ...],
        strata: StrataConfig,
        batch_size: PositiveInt | None,
    ) -> Named:
        """Place the models, score splits and write the scores; return metrics and counts over all ranks.

        Args:
            folder: where plans and predictions are written.
            ranks: all of them score together.
            splits: that are scored.
            strata: how rows are told apart.
            batch_size: rows of a global batch; the first run's where not given.

        Raises:
            ConfigError: a run was trained on other data or codes than are there now.
            CheckpointError: a checkpoint is gone or damaged.
        """
        scorers = [
            self._place(number, RunFolder(folder.path("members", str(number)), "rank"), ranks)
            if len(self.runs) > 1
            else self._place(number, folder, ranks)
            for number in range(len(self.runs))
        ]
        scoring = scoring_of(self.config, self._inputs[0], strata)._replace(
            splits=splits, protocols=self.settings.protocols
        )
        scoring = scoring._replace(batch_size=batch_size or scoring.batch_size)
        metrics, counts = write_predictions(scorers, scoring, folder, ranks)
        return metrics, counts | (parameter_counts(scorers[0].model) if len(scorers) == 1 else {})

    def _place(self, number: int, plans: RunFolder, ranks: Ranks) -> Scorer:
        config, inputs = self._configs[number], self._inputs[number]
        items = distinct_items(config.finetune)
        model, plan = place_ranker(config, inputs, inputs.data.mean_lengths(), ranks)
        tell_plan(plans, plan, ranks)
        load_weights(self.runs[number], model, inputs.checksums)
        return Scorer(model, inputs.data, items)


def _in_memory(config: RankConfig) -> RankConfig:
    return config.model_copy(update={"stream": None})


def scoring_of(config: RankConfig, inputs: RankInputs, strata: StrataConfig | None = None) -> Scoring:
    """Return how a run scores validation and test when it ends: under both protocols."""
    users, items = inputs.data.train_counts()
    return Scoring(config.train.evaluation_batch_size, strata_of_counts(items, users, strata))
