"""`trec-semid retrieve`: train a retriever, select on validation, evaluate over the whole catalogue."""

from contextlib import closing
from functools import partial

from trec_semid.evaluation.ranking import Named
from trec_semid.runtime.logs import RunLog
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.ranks import Ranks
from trec_semid.runtime.runs import RunFolder
from trec_semid.search.graph import expect_affordable
from trec_semid.training.retrieval.build import build_retriever
from trec_semid.training.retrieval.finished import evaluator_without_model, expect_members, members_of
from trec_semid.training.retrieval.inputs import RetrieveInputs, read_inputs
from trec_semid.training.retrieval.setup import RetrieveConfig
from trec_semid.training.retrieval.task import retrieval_task
from trec_semid.training.retrieval.teaching import with_teacher
from trec_semid.training.run import (
    Trained,
    run_once,
    train_and_write,
    training_ranks,
    with_pinned_codes,
)
from trec_semid.training.start_weights import StartWeights

__all__ = ["RetrieveConfig", "run"]


def run(config: RetrieveConfig) -> Trained:
    """Train and evaluate, or go on where an interrupted run stopped; a finished run is left as it is.

    Raises:
        SemidError: input, config or run folder that cannot be used, or training that went wrong.
    """
    with training_ranks(config.train) as ranks, own_folder(config.run, "retrieve", ranks):
        config = with_pinned_codes(config, ranks)
        folder, inputs = RunFolder(config.run, "retrieve"), with_teacher(read_inputs(config), config)
        expect_members(members_of(config, {}), config)
        if config.evaluation.has_graph and inputs.semantic_ids:
            num_items, num_positions = inputs.semantic_ids.codes.shape
            expect_affordable(num_items, num_positions, ranks.world_size)
        compute = partial(_retrieve, config, inputs, folder, ranks)
        build = partial(build_retriever, config, inputs, world_size=ranks.world_size)
        return run_once(folder, config, inputs, ranks, compute, build=build)


def _retrieve(
    config: RetrieveConfig,
    inputs: RetrieveInputs,
    folder: RunFolder,
    ranks: Ranks,
    start: StartWeights | None,
) -> Named:
    if not config.learns:
        return evaluator_without_model(config, inputs, folder, ranks).write(folder)
    with closing(RunLog(config.run, ranks.rank, tensorboard=True)) as log:
        task, evaluator = retrieval_task(config, inputs, folder, ranks, log)
        return train_and_write(
            task,
            lambda into, splits: evaluator.write(into, splits=splits),
            config=config,
            start=start,
            folder=folder,
            ranks=ranks,
            log=log,
        )
