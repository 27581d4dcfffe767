"""`trec-semid rank`: train a ranker, select on validation, evaluate, write predictions and metrics."""

from functools import partial

from torch import nn

from trec_semid.data.batches import RankingBatch
from trec_semid.data.ranking.loader import BatchMaker, TrainLoader
from trec_semid.embeddings.content_tables import PREFIX
from trec_semid.evaluation.ranking import Named
from trec_semid.runtime.logs import RunLog
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.ranks import Ranks
from trec_semid.runtime.runs import RunFolder
from trec_semid.sharding.plan import plan_on_ranks
from trec_semid.training.finetune.finetuning import Tuning, distinct_items, live_items, start_tuning
from trec_semid.training.finetune.tokenizer import TOKENIZER, load_learned
from trec_semid.training.loop import Training
from trec_semid.training.optimizers import build_updates
from trec_semid.training.ranking.predict import evaluate
from trec_semid.training.ranking.predictions import write_predictions
from trec_semid.training.ranking.setup import (
    RankConfig,
    RankInputs,
    build_model,
    build_tuned_model,
    read_inputs,
)
from trec_semid.training.run import (
    Trained,
    place_model,
    run_once,
    snapshot,
    tell_plan,
    train_and_write,
    training_ranks,
)
from trec_semid.training.start_weights import find_start_weights
from trec_semid.training.steps import Arguments, plain_arguments

__all__ = ["RankConfig", "run"]


def run(config: RankConfig) -> Trained:
    """Train and evaluate, or go on where an interrupted run stopped; a finished run is left as it is.

    Raises:
        SemidError: input, config or run folder that cannot be used, or training that went wrong.
    """
    with training_ranks(config.train) as ranks, own_folder(config.run, "rank", ranks):
        folder, inputs = RunFolder(config.run, "rank"), read_inputs(config)
        return run_once(
            folder, config, config.train, inputs, ranks, partial(_rank, config, folder, inputs, ranks)
        )


def _rank(config: RankConfig, folder: RunFolder, inputs: RankInputs, ranks: Ranks) -> Named:
    log = RunLog(config.run, ranks.rank, tensorboard=True)
    try:
        training = _set_up(config, folder, inputs, ranks, log)
        return train_and_write(training, folder, partial(write_predictions, training, folder, inputs, config))
    finally:
        log.close()


def _set_up(config: RankConfig, folder: RunFolder, inputs: RankInputs, ranks: Ranks, log: RunLog) -> Training:
    pinned = ranks.device.type == "cuda"
    items = distinct_items(config.tuning)
    train = inputs.data.batch_maker("train", "frozen", distinct_items=items, pinned=pinned)
    tokenizer = load_learned(config.tuning, config.semantic_ids, inputs.semantic_ids)
    if tokenizer:
        model = build_tuned_model(config, inputs, tokenizer, world_size=ranks.world_size)
    else:
        model = build_model(config, inputs.data.features, world_size=ranks.world_size)
    rows = -(-config.train.batch_size // ranks.world_size)
    plan = plan_on_ranks(
        model,
        ranks,
        config.sharding.part(PREFIX, is_inside=False) if tokenizer else config.sharding,
        batch_size=rows,
        optimizer=config.optimizers.tables,
        mean_lengths=train.mean_lengths(),
    )
    tell_plan(folder, plan, ranks)
    sharded = place_model(
        model, plan, ranks, config.optimizers.tables, std=config.tables.init_std, seed=config.seed
    )
    loader = TrainLoader(
        train,
        batch_size=config.train.batch_size,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    steps_per_epoch = config.train.steps_of(loader.steps_per_epoch)
    total_steps = steps_per_epoch * config.train.max_epochs
    _log_start(log, config, inputs, steps_per_epoch, ranks)
    tuning = start_tuning(config.tuning, inputs.semantic_ids, ranks, log, config.seed, steps_per_epoch)
    if tuning:
        longest = live_items(tuning.config, config.history.max_len)
        placed = tuning.attach(
            sharded, inputs.dataset, config.sharding, plan, batch_size=rows, items_per_row=longest
        )
        tell_plan(folder, placed, ranks, "content_plan")
    own_rates = {TOKENIZER: tuning.config.learning_rate} if tuning else {}
    valid = inputs.data.batch_maker("valid", "online", distinct_items=items, pinned=pinned)
    return Training(
        config.train,
        config.checkpoints,
        config.train.select_by,
        ("auc", "gauc", "log_loss"),
        ranks,
        log,
        sharded,
        build_updates(sharded, config.optimizers, total_steps=total_steps, own_rates=own_rates),
        loader,
        partial(_tuned_arguments, tuning) if tuning else plain_arguments,
        partial(_evaluate, sharded, valid, config.train.evaluation_batch_size, ranks),
        folder.path("checkpoints"),
        tuning.files if tuning else partial(snapshot, inputs.semantic_ids, config.semantic_ids),
        inputs.checksums,
        tuning,
        partial(find_start_weights, config, inputs),
        config.resume_from,
    )


def _log_start(
    log: RunLog, config: RankConfig, inputs: RankInputs, steps_per_epoch: int, ranks: Ranks
) -> None:
    log.event(
        "start",
        dataset=inputs.dataset.facts.name,
        representation=config.representation,
        features=[feature.name for feature in inputs.data.features],
        steps_per_epoch=steps_per_epoch,
        world_size=ranks.world_size,
    )


def _tuned_arguments(tuning: Tuning, batch: RankingBatch, step: int) -> Arguments:
    """Return what the model is called with: content only where the tokenizer learns."""
    plain = plain_arguments(batch, step)
    if not tuning.moves(step) or batch.items is None:
        return plain
    contents = tuning.contents(batch.items.rows)
    return Arguments((*plain.positional, contents), {"noise": tuning.noise(step)})


def _evaluate(model: nn.Module, valid: BatchMaker, batch_size: int, ranks: Ranks) -> dict[str, float]:
    return evaluate(model, valid, batch_size=batch_size, ranks=ranks)[0]
