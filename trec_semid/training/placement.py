"""What a run lays on its ranks, as planned and told: the tables of its model, and content beside them."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from trec_semid.core.paths import write_bytes
from trec_semid.core.seeds import seed_everything
from trec_semid.embeddings.content_tables import PREFIX, ContentTables, content_table
from trec_semid.models.live_codes import LiveCodes
from trec_semid.runtime.logs import CONSOLE
from trec_semid.runtime.ranks import Ranks
from trec_semid.runtime.runs import RunFolder
from trec_semid.sharding.apply import shard_frozen, shard_model
from trec_semid.sharding.constraints import ShardingConfig
from trec_semid.sharding.initialise import initialise_tables
from trec_semid.sharding.optimizer import SparseOptimizerConfig
from trec_semid.sharding.plan import TablePlan, plan_on_ranks
from trec_semid.sharding.tables import find_tables, table_shards
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.inputs.standardise import Standardiser

NOTHING_KEPT = SparseOptimizerConfig.model_validate({"kind": "sgd"})
"""What content tables are planned for: nothing trains them, so they have no state beside them."""
_ROWS_AT_ONCE = 65_536


class PlacedContent(NamedTuple):
    """Content of all items, standardised, on its ranks."""

    catalogue: ItemContents
    """Where it was read from."""
    tables: nn.Module
    """Sharded `ContentTables`, asked by item row; all ranks ask together."""
    plan: TablePlan


def place_model(
    model: nn.Module,
    plan: TablePlan,
    ranks: Ranks,
    optimizer: SparseOptimizerConfig,
    *,
    std: float,
    seed: int,
) -> DistributedModelParallel:
    """Shard a model as planned and draw its tables; checkpoints keep the random generators from here on.

    Args:
        model: unsharded.
        plan: of its tables.
        ranks: this process among its peers.
        optimizer: of the tables.
        std: of their first rows.
        seed: of the run.
    """
    has_tokenizer = any(
        isinstance(part, LiveCodes) and part.tokenizer is not None for part in model.modules()
    )
    # Warm-up leaves a tokenizer without gradients.
    sharded = shard_model(model, plan, ranks, optimizer, skips_parameters=has_tokenizer)
    # By rank: with one seed all ranks would drop the same cells of their parts of a batch.
    seed_everything(seed, "dropout", ranks.rank)
    initialise_tables(sharded, std=std, seed=seed)
    return sharded


def place_content(
    catalogue: ItemContents,
    standardiser: Standardiser,
    sharding: ShardingConfig,
    ranks: Ranks,
    *,
    batch_size: int,
    items_per_row: float,
    beside: TablePlan,
) -> PlacedContent:
    """Lay content into frozen tables beside what is placed already.

    Args:
        catalogue: content of all items.
        standardiser: fitted, on this rank's device.
        sharding: rules; those of content tables count.
        ranks: this process among its peers.
        batch_size: rows of a rank's batch.
        items_per_row: whose content is looked up, at most.
        beside: plan of the other tables.
    """
    tables = ContentTables(catalogue.dims, catalogue.num_items, device="meta")
    plan = plan_on_ranks(
        tables,
        ranks,
        sharding.part(PREFIX, is_inside=True),
        batch_size=batch_size,
        optimizer=NOTHING_KEPT,
        mean_lengths=dict.fromkeys(catalogue.dims, items_per_row),
        beside=beside,
    )
    sharded = shard_frozen(tables, plan, ranks)
    fill_content(sharded, catalogue, standardiser)
    return PlacedContent(catalogue, sharded, plan)


@torch.no_grad()
def fill_content(tables: nn.Module, catalogue: ItemContents, standardiser: Standardiser) -> None:
    """Write each rank's part of every modality's table, standardised, and the presence masks.

    Args:
        tables: `ContentTables`, sharded or not.
        catalogue: the same modalities and items; read where this rank's shards lie.
        standardiser: of the tokenizer, which does not change while it is tuned.
    """
    weights = tables.state_dict()
    parts = {table.name: table_shards(weights[table.key]) for table in find_tables(tables)}
    for name, vectors in catalogue.vectors.items():
        for first_row, first_column, part in parts[content_table(name)]:
            part.zero_()  # tables are a little wider than the content
            width = min(part.shape[1], vectors.shape[1] - first_column)
            for start in range(0, part.shape[0], _ROWS_AT_ONCE):
                piece = part[start : start + _ROWS_AT_ONCE]
                rows = slice(first_row + start, first_row + start + len(piece))
                x = _standardised(catalogue, standardiser, name, rows)
                piece[:, :width] = x[:, first_column : first_column + width]
    masks = np.stack([np.asarray(catalogue.present[name], bool) for name in catalogue.vectors], axis=1)
    holder = next(module for module in tables.modules() if isinstance(module, ContentTables))
    holder.present.copy_(torch.from_numpy(masks))


def _standardised(catalogue: ItemContents, standardiser: Standardiser, name: str, rows: slice) -> Tensor:
    device = standardiser.mean.device
    vectors, present = catalogue.modality(name, np.arange(rows.start, rows.stop))
    return standardiser.modality(name, vectors.to(device), present.to(device)).half()


def tell_plan(folder: RunFolder, plan: TablePlan, ranks: Ranks, name: str = "plan") -> None:
    """Write a plan into the run, and print it."""
    if ranks.is_main:
        text = plan.as_text()
        write_bytes(folder.path(f"{name}.json"), plan.to_json().encode())
        write_bytes(folder.path(f"{name}.txt"), text.encode())
        CONSOLE.print(text, soft_wrap=True, highlight=False, markup=False)
