"""`trec-semid rank`: train a ranker, select on validation, evaluate, write predictions and metrics."""

from contextlib import closing
from functools import partial

from trec_semid.data.schema import Split
from trec_semid.evaluation.ranking import Named
from trec_semid.runtime.logs import RunLog
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.ranks import Ranks
from trec_semid.runtime.runs import RunFolder
from trec_semid.training.finetune.finetuning import distinct_items
from trec_semid.training.ranking.compiled import expect_compiler
from trec_semid.training.ranking.finished import scoring_of
from trec_semid.training.ranking.predict import Scorer, write_predictions
from trec_semid.training.ranking.setup import RankConfig, RankInputs, build_ranker, read_inputs
from trec_semid.training.ranking.task import ranking_task
from trec_semid.training.run import (
    Trained,
    run_once,
    train_and_write,
    training_ranks,
    with_pinned_codes,
)
from trec_semid.training.start_weights import StartWeights

__all__ = ["RankConfig", "run"]


def run(config: RankConfig) -> Trained:
    """Train and evaluate, or go on where an interrupted run stopped; a finished run is left as it is.

    Raises:
        SemidError: input, config or run folder that cannot be used, or training that went wrong.
    """
    with training_ranks(config.train) as ranks, own_folder(config.run, "rank", ranks):
        config = with_pinned_codes(config, ranks)
        folder, inputs = RunFolder(config.run, "rank"), read_inputs(config)
        if config.train.compile:
            expect_compiler()
        compute = partial(_rank, config, inputs, folder, ranks)
        build = partial(build_ranker, config, inputs, world_size=ranks.world_size)
        return run_once(folder, config, inputs, ranks, compute, build=build)


def _rank(
    config: RankConfig, inputs: RankInputs, folder: RunFolder, ranks: Ranks, start: StartWeights | None
) -> Named:
    with closing(RunLog(config.run, ranks.rank, tensorboard=True)) as log:
        task = ranking_task(config, inputs, folder, ranks, log)
        scorer = Scorer(task.model, inputs.data, distinct_items(config.finetune))
        scoring = scoring_of(config, inputs)

        def write(into: RunFolder, splits: tuple[Split, ...]) -> Named:
            """Score splits by the weights that are there, under both protocols."""
            return write_predictions([scorer], scoring._replace(splits=splits), into, ranks)

        return train_and_write(task, write, config=config, start=start, folder=folder, ranks=ranks, log=log)
