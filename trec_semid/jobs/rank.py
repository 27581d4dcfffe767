"""`trec-semid rank`: train a ranker, select on validation, evaluate, write predictions and metrics."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from torch import nn

from trec_semid.core.config import config_checksum
from trec_semid.core.errors import ConfigError
from trec_semid.core.logs import CONSOLE, RunLog, set_up_console
from trec_semid.core.paths import exists, write_bytes
from trec_semid.core.ranks import Ranks, barrier, broadcast_object, process_group
from trec_semid.core.runs import RunFolder
from trec_semid.core.seeds import seed_everything
from trec_semid.data.batches import RankingBatch
from trec_semid.data.loader import BatchMaker, TrainLoader
from trec_semid.embeddings.content_tables import PREFIX
from trec_semid.jobs.rank_predictions import write_predictions
from trec_semid.jobs.rank_setup import (
    RankConfig,
    RankInputs,
    build_model,
    build_tuned_model,
    read_inputs,
)
from trec_semid.jobs.training_loop import Training, refuse_other_inputs
from trec_semid.jobs.tuning import (
    TOKENIZER,
    Tuning,
    distinct_items,
    live_items,
    load_learned,
    open_content,
)
from trec_semid.sharding.apply import dense_parameters, shard_model
from trec_semid.sharding.plan import TablePlan, plan_on_ranks
from trec_semid.sharding.tables import find_tables
from trec_semid.tokenizers.semantic_ids import FILE
from trec_semid.training.optimizers import build_updates
from trec_semid.training.predict import evaluate
from trec_semid.training.steps import Arguments, plain_arguments
from trec_semid.training.tables import initialise_tables

__all__ = ["RankConfig", "Ranked", "run"]
_log = logging.getLogger(__name__)


class Ranked(NamedTuple):
    """What a rank run comes to."""

    run: str
    metrics: dict[str, float]


def run(config: RankConfig) -> Ranked:
    """Train and evaluate, or go on where an interrupted run stopped; a finished run is left as it is.

    Raises:
        SemidError: input, config or run folder that cannot be used, or training that went wrong.
    """
    with process_group() as ranks, _without_library_notices():
        set_up_console(ranks)
        folder, inputs = RunFolder(config.run, "rank"), read_inputs(config)
        if broadcast_object(ranks.is_main and _is_finished(folder, config, inputs)):
            _log.info("%s is already done", config.run)
        else:
            _rank(config, folder, inputs, ranks)
            barrier()
        return Ranked(config.run, folder.read_json("metrics.json")["metrics"])


@contextmanager
def _without_library_notices() -> Iterator[None]:
    """Keep what torch tells its own developers off the console."""
    tracing = logging.getLogger("torch.fx._symbolic_trace")
    before = tracing.level
    tracing.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            # Replicated tables on CPU: their gradient is right, as the tests of sharding show.
            warnings.filterwarnings("ignore", message=".*an autograd kernel was not registered")
            yield
    finally:
        tracing.setLevel(before)


def _is_finished(folder: RunFolder, config: RankConfig, inputs: RankInputs) -> bool:
    return folder.is_finished(config, inputs.checksums)


def _rank(config: RankConfig, folder: RunFolder, inputs: RankInputs, ranks: Ranks) -> None:
    _refuse_other_run(folder, config, ranks)
    refuse_other_inputs(folder.path("checkpoints"), inputs.checksums, ranks)
    if ranks.is_main:
        folder.start(config, inputs.checksums)
        if inputs.semantic_ids:
            inputs.semantic_ids.save(folder.path(FILE))
    barrier()
    log = RunLog(config.run, ranks.rank, tensorboard=True)
    try:
        training = _set_up(config, folder, inputs, ranks, log)
        training.resume()
        training.run()
        metrics, counts = write_predictions(training, folder, inputs, config)
        counts |= _parameter_counts(training)
        if training.tuning:
            metrics |= training.tuning.write(folder)
        log.event("finish", step=training.steps, best_step=training.selection.best_step)
        if ranks.is_main:
            facts = inputs.dataset.facts
            folder.write_metrics(
                metrics, seed=config.seed, dataset=facts.name, dataset_checksum=facts.checksum, counts=counts
            )
    finally:
        log.close()


def _refuse_other_run(folder: RunFolder, config: RankConfig, ranks: Ranks) -> None:
    """Keep what another config trained: its checkpoints are not ours to go on from or to overwrite."""
    is_other = ranks.is_main and exists(folder.path("run.json")) and not _is_of(folder, config)
    if broadcast_object(is_other):
        raise ConfigError(
            f"{folder.uri}: holds a run of another config. Set another `run`, or remove that folder."
        )


def _is_of(folder: RunFolder, config: RankConfig) -> bool:
    return folder.read_json("run.json").get("config_checksum") == config_checksum(config)


def _set_up(config: RankConfig, folder: RunFolder, inputs: RankInputs, ranks: Ranks, log: RunLog) -> Training:
    pinned = ranks.device.type == "cuda"
    items = distinct_items(config.tuning)
    train = inputs.data.batch_maker("train", "frozen", distinct_items=items, pinned=pinned)
    tokenizer = load_learned(config.semantic_ids or "") if config.tuning else None
    if tokenizer:
        model = build_tuned_model(config, inputs, tokenizer, world_size=ranks.world_size)
    else:
        model = build_model(config, inputs.data.features, world_size=ranks.world_size)
    plan = plan_on_ranks(
        model,
        ranks,
        config.sharding.part(PREFIX, is_inside=False) if tokenizer else config.sharding,
        batch_size=-(-config.train.batch_size // ranks.world_size),
        optimizer=config.optimizers.tables,
        mean_lengths=train.mean_lengths(),
    )
    _tell_plan(folder, plan, ranks)
    sharded = shard_model(
        model, plan, ranks, config.optimizers.tables, skips_parameters=tokenizer is not None
    )
    seed_everything(config.seed, "dropout", ranks.rank)  # checkpoints keep the generators from here on
    initialise_tables(sharded, std=config.tables.init_std, seed=config.seed)
    loader = TrainLoader(
        train,
        batch_size=config.train.batch_size,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    total_steps = loader.steps_per_epoch * config.train.max_epochs
    log.event(
        "start",
        dataset=inputs.dataset.facts.name,
        representation=config.representation,
        features=[feature.name for feature in inputs.data.features],
        steps_per_epoch=loader.steps_per_epoch,
        world_size=ranks.world_size,
    )
    own_rates, tuning = {}, None
    if tokenizer and config.tuning and inputs.semantic_ids:
        own_rates = {TOKENIZER: config.tuning.learning_rate}
        tuning = Tuning(
            config.tuning,
            inputs.semantic_ids,
            ranks,
            log,
            seed=config.seed,
            steps_per_epoch=loader.steps_per_epoch,
        )
        placed = tuning.attach(
            sharded,
            open_content(inputs.dataset, tokenizer),
            config.sharding,
            plan,
            batch_size=-(-config.train.batch_size // ranks.world_size),
            items_per_row=live_items(config.tuning, config.history.max_len),
        )
        _tell_plan(folder, placed, ranks, "content_plan")
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
        tuning.files if tuning else partial(_snapshot, inputs),
        inputs.checksums,
        tuning,
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


def _snapshot(inputs: RankInputs) -> dict[str, bytes]:
    return {FILE: inputs.semantic_ids.to_bytes()} if inputs.semantic_ids else {}


def _tell_plan(folder: RunFolder, plan: TablePlan, ranks: Ranks, name: str = "plan") -> None:
    if ranks.is_main:
        text = plan.as_text()
        write_bytes(folder.path(f"{name}.json"), plan.to_json().encode())
        write_bytes(folder.path(f"{name}.txt"), text.encode())
        CONSOLE.print(text, soft_wrap=True, highlight=False, markup=False)


def _parameter_counts(training: Training) -> dict[str, int]:
    dense = sum(weight.numel() for weight in dense_parameters(training.model).values())
    tables = sum(table.rows * table.dim for table in find_tables(training.model))
    return {"parameters/dense": dense, "parameters/tables": tables}
