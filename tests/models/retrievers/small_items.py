"""A few items, histories and batches of them, for tests of retrievers on plain tensors."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trec_semid.data.features import Feature, Sources
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.batches import (
    ItemFeatures,
    SampledItems,
    SequenceBatch,
    SequenceMaker,
    Window,
    history_batch,
)
from trec_semid.embeddings.code_tables import CodeTable, CodeTables
from trec_semid.embeddings.collection import PooledTables, keyed_jagged
from trec_semid.embeddings.tables import TablesConfig, TableSpec
from trec_semid.models.item_tokens import ItemTokens, Listed
from trec_semid.models.live_codes import LiveCodes

NUM_ITEMS, DIM, MAX_LEN = 9, 8, 6
FEATURES = ItemFeatures((Feature("item_id", "item", "t_item_id", NUM_ITEMS),), Sources({}, None))
ROWS = [[0, 1, 2, 3], [4, 5], [6, 7, 8, 1, 0], [2, 2, 3]]


def items_of_ids(
    codes: Tensor | None = None, sizes: Sequence[int] = (), *, std: float = 1.0, num_items: int = NUM_ITEMS
) -> ItemTokens:
    """Return items of an ID, and of codes where given, whose rows are drawn from the seed of now."""
    spec = TableSpec("t_item_id", num_items, ("item_id",))
    sparse = PooledTables([spec], TablesConfig(dim=DIM, init_std=0.01), ["item_id"])
    live = None
    if codes is not None:
        rows = max(sizes) + 1
        tables = CodeTables([CodeTable(f"t_code_{r}", rows) for r in range(len(sizes))], DIM)
        live = LiveCodes(tables, codes)
    items = ItemTokens(sparse, {}, live, DIM, content_std=0.02, content_is_unit=True)
    with torch.no_grad():
        for weight in items.parameters():
            weight.normal_(std=std)
    return items


def listed_of(rows: Tensor) -> Listed:
    return Listed(rows, keyed_jagged(*FEATURES.of(rows.numpy())), None)


def all_listed(num_items: int = NUM_ITEMS) -> Listed:
    return listed_of(torch.arange(num_items))


def ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    lengths = np.array([len(row) for row in rows])
    return Ragged(np.cumsum(lengths) - lengths, lengths, np.concatenate(rows).astype(np.int64))


def training_batch(
    rows: Sequence[Sequence[int]] = ROWS,
    *,
    window: int = 1,
    sampled: SampledItems | None = None,
    is_last_only: bool = False,
    num_items: int = NUM_ITEMS,
) -> SequenceBatch:
    """Return all of these rows, over all items unless some are sampled."""
    listed = None if sampled else np.arange(num_items)
    maker = SequenceMaker(
        ragged(rows), FEATURES, Window(window, is_last_only), listed=listed, sampled=sampled
    )
    numbers = np.arange(len(rows))
    return maker.make(numbers, maker.num_places(numbers), np.random.default_rng(0))


def users_batch(histories: Sequence[Sequence[int]]) -> SequenceBatch:
    """Return users to be asked for, an empty history among them where there is one."""
    return history_batch(ragged(histories), np.arange(len(histories)), FEATURES, len(histories))
