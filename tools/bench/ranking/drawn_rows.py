"""Rows of a ranker that benches train on: users, items with codes, and full histories, all Zipf-like."""

from argparse import Namespace

import numpy as np

from trec_semid.data.features import Feature, Sources
from trec_semid.data.ragged import Ragged
from trec_semid.data.ranking.batch_maker import BatchMaker
from trec_semid.data.ranking.rows import RankingRows

CODEBOOK = 1024


def describe(options: Namespace) -> tuple[Feature, ...]:
    """Return user, item and history features, with codes beside item IDs; sizes are `options`'."""
    codes = range(options.codes)
    return (
        Feature("user_id", "user", "t_user_id", options.users),
        Feature("item_id", "item", "t_item_id", options.items),
        *(Feature(f"item_code_{r}", "item_code", f"t_code_{r}", CODEBOOK, r) for r in codes),
        Feature("history_item", "history", "t_item_id", options.items),
        *(Feature(f"history_code_{r}", "history_code", f"t_code_{r}", CODEBOOK, r) for r in codes),
    )


def make_maker(options: Namespace, features: tuple[Feature, ...], num_rows: int) -> BatchMaker:
    """Draw so many rows from a fixed seed; sizes are `options`'."""
    rng = np.random.default_rng(0)

    def draw(size: int, limit: int) -> np.ndarray:
        return (limit * rng.random(size) ** 3).astype(np.int64)

    events = draw(max(num_rows, 2_000_000), options.items)
    starts = rng.integers(0, len(events) - options.history, num_rows)
    histories = Ragged(starts, np.full(num_rows, options.history), events)
    labels = (rng.random(num_rows) < 0.3).astype(np.float32)
    codes = rng.integers(0, CODEBOOK, (options.items, max(options.codes, 1)), np.int32)
    users, items = draw(num_rows, options.users), draw(num_rows, options.items)
    return BatchMaker(RankingRows(users, items, labels, histories), features, Sources({}, codes))
