"""A retriever as a task: model, batches and evaluation that its config asks for, placed on the ranks."""

from functools import partial

from trec_semid.data.retrieval.batches import SequenceBatch
from trec_semid.data.retrieval.dataset import RetrievalData
from trec_semid.data.retrieval.loader import SequenceLoader
from trec_semid.data.retrieval.soft_targets import SoftTargets
from trec_semid.runtime.logs import RunLog
from trec_semid.runtime.ranks import Ranks
from trec_semid.runtime.runs import RunFolder
from trec_semid.training.finetune.finetuning import Finetuning
from trec_semid.training.finetune.start import ContentUse, start_finetuning
from trec_semid.training.finetune.tokenizer import TOKENIZER
from trec_semid.training.optimizers import build_updates
from trec_semid.training.passes import Arguments
from trec_semid.training.retrieval.evaluation.evaluator import Evaluator
from trec_semid.training.retrieval.evaluation.listing import lister_of, merging_lister_of
from trec_semid.training.retrieval.inputs import RetrieveInputs
from trec_semid.training.retrieval.item_feed import ItemFeed, LiveItems
from trec_semid.training.retrieval.placed import place_retriever
from trec_semid.training.retrieval.setup import RetrieveConfig
from trec_semid.training.retrieval.teaching import soft_targets
from trec_semid.training.run import snapshot
from trec_semid.training.task import Task


def retrieval_task(
    config: RetrieveConfig, inputs: RetrieveInputs, folder: RunFolder, ranks: Ranks, log: RunLog
) -> tuple[Task, Evaluator]:
    """Build the model, place its tables and content, and open the batches; return the evaluator of it, too.

    Args:
        config: of the run; its method learns.
        inputs: what it is trained on.
        folder: of the run, where plans are written.
        ranks: this process among its peers; all of them build it together.
        log: of this rank.

    Raises:
        ConfigError: the tokenizer cannot learn in the loop.
        PlanError: the tables do not fit.
    """
    data = inputs.data
    # First of all: the teacher's models are gone before the student's are there.
    loader = _loader(config, data, soft_targets(config, data, folder, ranks), ranks)
    steps_per_epoch = config.train.steps_of(loader.steps_per_epoch)
    placed = place_retriever(config, inputs, folder, ranks)
    sharded, feed = placed.model, placed.feed
    # Every listed item is looked up once.
    use = ContentUse(
        placed.plan,
        batch_size=placed.items_at_once,
        items_per_row=1.0,
        plan_name="tokenizer_content_plan",
        rows_std=config.tables.init_std,
    )
    finetuning = start_finetuning(
        config, inputs, sharded, use, folder=folder, ranks=ranks, log=log, steps_per_epoch=steps_per_epoch
    )
    asked = placed.asked(config.retriever, data, ranks)
    lister = lister_of(asked, config.evaluation)
    merging = merging_lister_of(asked, config.evaluation, lister)
    evaluator = Evaluator(lister, sharded, data, config, ranks, merging, asked)
    _log_start(log, config, inputs, steps_per_epoch, ranks)
    frozen_codes = partial(snapshot, inputs.semantic_ids, config.semantic_ids)
    task = Task(
        model=sharded,
        updates=build_updates(
            sharded,
            config.optimizers,
            total_steps=steps_per_epoch * config.train.max_epochs,
            own_rates={TOKENIZER: finetuning.config.learning_rate} if finetuning else {},
        ),
        batches=loader,
        arguments=partial(_arguments, feed, finetuning),
        evaluate=evaluator.metrics,
        select_by=None if config.test_then_train else config.train.select_by,
        shown=tuple(dict.fromkeys(("recall@10", "ndcg@10", config.train.select_by, *asked.model.noted))),
        inputs=inputs.checksums,
        snapshot=finetuning.files if finetuning else frozen_codes,
        finetuning=finetuning,
    )
    return task, evaluator


def _loader(
    config: RetrieveConfig, data: RetrievalData, soft: SoftTargets | None, ranks: Ranks
) -> SequenceLoader:
    negatives = config.loss.negatives
    maker = data.maker(
        num_targets=config.window,
        listed=data.negatives(negatives) if config.lists_all else None,
        sampled=config.sampled,
        negatives=negatives,
        soft=soft,
        num_in_full=config.num_in_full,
        finds_named=config.finetune is not None,
        pinned=ranks.device.type == "cuda",
    )
    return SequenceLoader(
        maker,
        batch_size=config.train.batch_size,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )


def _log_start(
    log: RunLog, config: RetrieveConfig, inputs: RetrieveInputs, steps_per_epoch: int, ranks: Ranks
) -> None:
    log.event(
        "start",
        dataset=inputs.dataset.facts.name,
        model=config.model.kind,
        features=[feature.name for feature in inputs.data.features],
        steps_per_epoch=steps_per_epoch,
        world_size=ranks.world_size,
    )


def _arguments(feed: ItemFeed, finetuning: Finetuning | None, batch: SequenceBatch, step: int) -> Arguments:
    """Return what the model is called with: content of live items only where the tokenizer learns."""
    live = (
        LiveItems(finetuning.contents, finetuning.noise(step))
        if finetuning and finetuning.moves(step)
        else None
    )
    return Arguments((feed.listed(batch, live), batch.places, batch.global_size), {})
