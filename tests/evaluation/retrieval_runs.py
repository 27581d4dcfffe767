"""Targets of made-up users, with ranks and strata, for tests of retrieval."""

import numpy as np

from trec_semid.evaluation.predictions import PredictionWriter
from trec_semid.evaluation.strata import Strata
from trec_semid.evaluation.target_ranks import TARGET_RANK_SCHEMA, TargetRanks

NUM_USERS, NUM_ITEMS = 200, 300
RANDOM_STRATA = Strata(
    np.random.default_rng(7).integers(0, 4, NUM_ITEMS).astype(np.int8),
    np.random.default_rng(8).integers(0, 4, NUM_USERS).astype(np.int8),
)


def random_targets(num_users=NUM_USERS, seed=0, most=5):
    """Some users, with 1 to `most` targets each of different ranks."""
    random = np.random.default_rng(seed)
    users = np.sort(random.choice(NUM_USERS, num_users, replace=False))
    lengths = random.integers(1, most + 1, num_users)
    ranks = [random.choice(150, size, replace=False) + 1 for size in lengths]
    items = [random.choice(NUM_ITEMS, size, replace=False) for size in lengths]
    user_row = np.repeat(users, lengths)
    return TargetRanks(np.arange(len(user_row)), user_row, np.concatenate(items), np.concatenate(ranks))


def write_targets(run, targets, split="test", world_size=1):
    for rank in range(world_size):
        with PredictionWriter(
            run,
            split,
            rank=rank,
            world_size=world_size,
            num_rows=len(targets.row),
            schema=TARGET_RANK_SCHEMA,
        ) as writer:
            writer.write(**{name: column[rank::world_size] for name, column in targets._asdict().items()})
