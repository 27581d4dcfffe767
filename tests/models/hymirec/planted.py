"""Users with an old interest and a recent one, and HyMiRec over items that are an ID and two codes."""

from typing import Any

import numpy as np
import torch

from trec_semid.data.features import Feature, Sources
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.batches import (
    ItemFeatures,
    SequenceBatch,
    SequenceMaker,
    Window,
    history_batch,
)
from trec_semid.embeddings.code_tables import CodeTable, CodeTables
from trec_semid.embeddings.collection import PooledTables, keyed_jagged
from trec_semid.embeddings.tables import TablesConfig, TableSpec
from trec_semid.layers.attention import TransformerConfig
from trec_semid.models.item_tokens import ItemTokens, Listed
from trec_semid.models.live_codes import LiveCodes
from trec_semid.models.retriever import LossConfig
from trec_semid.models.retrievers.hymirec import HymirecConfig, HymirecModel
from trec_semid.tokenizers.maps.compressed import CompressedItems

NUM_TOPICS, PER_TOPIC, DIM = 8, 6, 16
NUM_ITEMS = NUM_TOPICS * PER_TOPIC
STILL = TransformerConfig(num_layers=1, num_heads=2, dropout=0.0)
FEATURES = ItemFeatures((Feature("item_id", "item", "t_item_id", NUM_ITEMS),), Sources({}, None))
OLD, RECENT, AHEAD = 24, 8, 4
"""Events of the old interest, then of the recent one, then targets of both."""


def built(
    *,
    max_len: int = OLD + RECENT,
    seed: int = 0,
    compressed: CompressedItems | None = None,
    **changes: Any,
) -> HymirecModel:
    """Return an unsharded model; items of one topic share their first code."""
    torch.manual_seed(seed)
    spec = TableSpec("t_item_id", NUM_ITEMS, ("item_id",))
    sparse = PooledTables([spec], TablesConfig(dim=DIM, init_std=0.02), ["item_id"])
    tables = CodeTables([CodeTable(f"t_code_{r}", NUM_TOPICS + 1) for r in range(2)], DIM)
    items = ItemTokens(sparse, {}, LiveCodes(tables, codes()), DIM, content_std=0.02, content_is_unit=True)
    settings = {
        "num_interests": 2,
        "coarse_interests": 4,
        "recent": RECENT,
        "transformer": STILL,
        "dropout": 0.0,
    }
    loss = LossConfig(item_similarity_is_cosine=True, item_temperature=0.1)
    config = HymirecConfig(**{**settings, **changes})
    return HymirecModel(items, config, loss, max_len=max_len, compressed=compressed)


def codes() -> torch.Tensor:
    """Return (N, 2): topic, and place in the topic."""
    rows = torch.arange(NUM_ITEMS)
    return torch.stack([rows // PER_TOPIC, rows % PER_TOPIC], dim=1).short()


def ragged(rows: list[list[int]]) -> Ragged:
    lengths = np.array([len(row) for row in rows], np.int64)
    return Ragged(np.cumsum(lengths) - lengths, lengths, np.array([i for row in rows for i in row], np.int64))


def drawn_rows(num_users: int, seed: int) -> tuple[list[list[int]], np.ndarray]:
    """Return rows, each a history and the items after it, and the two topics (num_users, 2) of each."""
    rng = np.random.default_rng(seed)
    topics = np.stack([rng.choice(NUM_TOPICS, 2, replace=False) for _ in range(num_users)])
    ahead = [0, 1] * (AHEAD // 2)
    rows = [
        [int(t * PER_TOPIC + rng.integers(PER_TOPIC)) for t in pair[[0] * OLD + [1] * RECENT + ahead]]
        for pair in topics
    ]
    return rows, topics


def batch_of(rows: list[list[int]], window: int = AHEAD, num_in_full: int | None = None) -> SequenceBatch:
    """Return training rows, of which every batch lists all items."""
    maker = SequenceMaker(
        ragged(rows), FEATURES, Window(window, True), listed=np.arange(NUM_ITEMS), num_in_full=num_in_full
    )
    return maker.make(np.arange(len(rows)), len(rows), np.random.default_rng(0))


def histories_of(rows: list[list[int]]) -> SequenceBatch:
    return history_batch(ragged(rows), np.arange(len(rows)), FEATURES, len(rows))


def listed_of(batch: SequenceBatch) -> Listed:
    return Listed(batch.items, keyed_jagged(*FEATURES.of(batch.items.numpy())), None)


def train(model: HymirecModel, steps: int, *, num_users: int = 64) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        rows, _ = drawn_rows(num_users, seed=step)
        batch = batch_of(rows)
        losses, _ = model(listed_of(batch), batch.places)
        optimizer.zero_grad()
        sum(model.loss_weights[name] * loss.mean() for name, loss in losses.items()).backward()
        optimizer.step()


def recalls(model: HymirecModel, num_users: int = 200) -> tuple[float, float]:
    """Return the shares of the old and of the recent topic's items among the first two topics' worth."""
    rows, topics = drawn_rows(num_users, seed=10_000)
    histories = histories_of([row[:-AHEAD] for row in rows])
    everything = histories._replace(items=torch.arange(NUM_ITEMS))
    with torch.no_grad():
        vectors = model.item_vectors(model.items(listed_of(everything)))
        asked = model.queries(model.items(listed_of(histories)), histories.places).vectors
        assert asked is not None
        listed = (asked @ vectors.T).amax(1).topk(2 * PER_TOPIC).indices // PER_TOPIC
    shares = [(listed == torch.tensor(topics[:, part : part + 1])).sum(1) / PER_TOPIC for part in (0, 1)]
    return shares[0].mean().item(), shares[1].mean().item()
