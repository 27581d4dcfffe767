"""The tokenizer's part in a run, from its config: content beside the model, codes computed inside it."""

from typing import NamedTuple

from torch import nn

from trec_semid.runtime.logs import RunLog
from trec_semid.runtime.ranks import Ranks
from trec_semid.runtime.runs import RunFolder
from trec_semid.sharding.plan import TablePlan
from trec_semid.training.config import TrainingRunConfig
from trec_semid.training.finetune.code_rows import start_from_codebooks
from trec_semid.training.finetune.finetuning import Finetuning, live_codes_of
from trec_semid.training.finetune.tokenizer import open_content
from trec_semid.training.placement import place_content, tell_plan
from trec_semid.training.start_weights import StartInputs


class ContentUse(NamedTuple):
    """How a task looks content up for the tokenizer."""

    beside: TablePlan
    """Of the tables that are placed already."""
    batch_size: int
    """Rows of a rank's batch."""
    items_per_row: float
    """Whose content is looked up, at most."""
    plan_name: str
    """Of the plan's file in the run."""
    rows_std: float
    """Of a coordinate of the tables' first rows."""


def start_finetuning(
    config: TrainingRunConfig,
    inputs: StartInputs,
    model: nn.Module,
    use: ContentUse,
    *,
    folder: RunFolder,
    ranks: Ranks,
    log: RunLog,
    steps_per_epoch: int,
) -> Finetuning | None:
    """Place the content that the tokenizer reads; None where no tokenizer is in the loop.

    Args:
        config: of the run.
        inputs: what it is trained on.
        model: placed, with live codes in it where the config fine-tunes.
        use: how content is looked up.
        folder: of the run, where the plan is written.
        ranks: all of them place it together.
        log: of this rank.
        steps_per_epoch: in which warm-up and noise are counted.
    """
    if config.finetune is None or inputs.semantic_ids is None:
        return None
    live = live_codes_of(model)
    assert live.tokenizer is not None, "built with one"
    content = place_content(
        open_content(inputs.dataset, live.tokenizer),
        live.tokenizer.standardiser,
        config.sharding,
        ranks,
        batch_size=use.batch_size,
        items_per_row=use.items_per_row,
        beside=use.beside,
    )
    tell_plan(folder, content.plan, ranks, use.plan_name)
    if config.finetune.starts_from_codebooks:
        start_from_codebooks(live, std=use.rows_std, seed=config.seed)
    return Finetuning(
        config.finetune,
        live,
        content,
        inputs.semantic_ids,
        ranks,
        log,
        seed=config.seed,
        steps_per_epoch=steps_per_epoch,
    )
