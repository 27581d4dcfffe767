"""A ranker as a task: model, batches and evaluation that its config asks for, placed on the ranks."""

from functools import partial
from typing import Any, cast

from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from trec_semid.data.batches import RankingBatch
from trec_semid.data.ranking.source import Asked, RankingSource
from trec_semid.embeddings.content_tables import PREFIX
from trec_semid.runtime.logs import RunLog
from trec_semid.runtime.ranks import Ranks
from trec_semid.runtime.runs import RunFolder
from trec_semid.sharding.plan import TablePlan, plan_on_ranks
from trec_semid.training.finetune.finetuning import Finetuning, distinct_items, live_items
from trec_semid.training.finetune.start import ContentUse, start_finetuning
from trec_semid.training.finetune.tokenizer import TOKENIZER
from trec_semid.training.optimizers import build_updates
from trec_semid.training.passes import Arguments, plain_arguments
from trec_semid.training.placement import place_model, tell_plan
from trec_semid.training.ranking.compiled import compile_dense
from trec_semid.training.ranking.predict import evaluate
from trec_semid.training.ranking.setup import RankConfig, RankInputs, build_ranker
from trec_semid.training.run import snapshot
from trec_semid.training.task import Task


def ranking_task(
    config: RankConfig, inputs: RankInputs, folder: RunFolder, ranks: Ranks, log: RunLog
) -> Task:
    """Build the model, place its tables and the content of its tokenizer, and open the batches.

    Args:
        config: of the run.
        inputs: what it is trained on.
        folder: of the run, where plans are written.
        ranks: this process among its peers; all of them build it together.
        log: of this rank.

    Raises:
        ConfigError: the tokenizer cannot learn in the loop.
        PlanError: the tables do not fit.
    """
    items, is_pinned = distinct_items(config.finetune), ranks.device.type == "cuda"
    asked = Asked(config.train.batch_size, ranks.rank, ranks.world_size, items, is_pinned)
    model, plan = place_ranker(config, inputs, inputs.data.mean_lengths(), ranks)
    tell_plan(folder, plan, ranks)
    if config.train.compile:
        compile_dense(cast(Any, model.module).ranker.dense)
    batches = inputs.data.training(asked, config.seed)
    steps_per_epoch = config.train.steps_of(batches.steps_per_epoch)
    _log_start(log, config, inputs, steps_per_epoch, ranks)
    use = ContentUse(
        plan,
        batch_size=_rows_of_rank(config, ranks),
        items_per_row=live_items(config.finetune, config.history.max_len) if config.finetune else 0.0,
        plan_name="content_plan",
        rows_std=config.tables.init_std,
    )
    finetuning = start_finetuning(
        config, inputs, model, use, folder=folder, ranks=ranks, log=log, steps_per_epoch=steps_per_epoch
    )
    frozen_codes = partial(snapshot, inputs.semantic_ids, config.semantic_ids)
    return Task(
        model=model,
        updates=build_updates(
            model,
            config.optimizers,
            total_steps=steps_per_epoch * config.train.max_epochs,
            own_rates={TOKENIZER: finetuning.config.learning_rate} if finetuning else {},
        ),
        batches=batches,
        arguments=partial(_with_content, finetuning) if finetuning else plain_arguments,
        evaluate=partial(
            _evaluate,
            model,
            inputs.data,
            asked._replace(batch_size=config.train.evaluation_batch_size),
            ranks,
        ),
        select_by=None if config.test_then_train else config.train.select_by,
        shown=("auc", "gauc", "log_loss"),
        inputs=inputs.checksums,
        snapshot=finetuning.files if finetuning else frozen_codes,
        finetuning=finetuning,
    )


def place_ranker(
    config: RankConfig, inputs: RankInputs, mean_lengths: dict[str, float], ranks: Ranks
) -> tuple[DistributedModelParallel, TablePlan]:
    """Build the model, with the tokenizer in it where one learns, and place it; its weights are drawn.

    Args:
        config: of the run.
        inputs: what it is trained on.
        mean_lengths: of each feature's bags.
        ranks: all of them place it together.
    """
    model = build_ranker(config, inputs, world_size=ranks.world_size)
    optimizer = config.optimizers.tables
    plan = plan_on_ranks(
        model,
        ranks,
        config.sharding.part(PREFIX, is_inside=False) if config.finetune else config.sharding,
        batch_size=_rows_of_rank(config, ranks),
        optimizer=optimizer,
        mean_lengths=mean_lengths,
    )
    std, seed = config.tables.init_std, config.seed
    return place_model(model, plan, ranks, optimizer, std=std, seed=seed), plan


def _rows_of_rank(config: RankConfig, ranks: Ranks) -> int:
    return -(-config.train.batch_size // ranks.world_size)


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


def _with_content(finetuning: Finetuning, batch: RankingBatch, step: int) -> Arguments:
    """Return what the model is called with: content only where the tokenizer learns."""
    plain = plain_arguments(batch, step)
    if not finetuning.moves(step) or batch.items is None:
        return plain
    contents = finetuning.contents(batch.items.rows)
    return Arguments((*plain.positional, contents), {"noise": finetuning.noise(step)})


def _evaluate(model: nn.Module, data: RankingSource, asked: Asked, ranks: Ranks) -> dict[str, float]:
    return evaluate(model, data.evaluation("valid", "online", asked), ranks)[0]
