"""Targets of made-up users, with positions and strata, for tests of retrieval."""

import numpy as np

from trec_semid.evaluation.predictions import PredictionWriter
from trec_semid.evaluation.strata import Strata
from trec_semid.evaluation.target_positions import TARGET_SCHEMA, TargetPositions

NUM_USERS, NUM_ITEMS = 200, 300
RANDOM_STRATA = Strata(
    np.random.default_rng(7).integers(0, 4, NUM_ITEMS).astype(np.int8),
    np.random.default_rng(8).integers(0, 4, NUM_USERS).astype(np.int8),
)


def random_targets(num_users=NUM_USERS, seed=0, most=5):
    """Some users, with 1 to `most` targets each of different positions."""
    random = np.random.default_rng(seed)
    users = np.sort(random.choice(NUM_USERS, num_users, replace=False))
    lengths = random.integers(1, most + 1, num_users)
    positions = [random.choice(150, size, replace=False) + 1 for size in lengths]
    items = [random.choice(NUM_ITEMS, size, replace=False) for size in lengths]
    user_row = np.repeat(users, lengths)
    rows = np.arange(len(user_row))
    return TargetPositions(rows, user_row, np.concatenate(items), np.concatenate(positions))


def write_targets(run, targets, split="test", world_size=1):
    for rank in range(world_size):
        with PredictionWriter(
            run,
            split,
            rank=rank,
            world_size=world_size,
            num_rows=len(targets.row),
            schema=TARGET_SCHEMA,
        ) as writer:
            writer.write(**{name: column[rank::world_size] for name, column in targets.columns().items()})
