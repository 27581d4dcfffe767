"""Users who like two opposite directions of the item space, which no single vector can point to."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tests.models.retrievers.small_items import (
    DIM,
    all_listed,
    items_of_ids,
    listed_of,
    training_batch,
    users_batch,
)
from trec_semid.models.item_tokens import ItemTokens
from trec_semid.models.retrieval_model import RetrievalModel, RetrieverWithLoss

NUM_DIRECTIONS, PER_DIRECTION = 8, 6
NUM_ITEMS = NUM_DIRECTIONS * PER_DIRECTION
LENGTH = 7


def planted_items() -> ItemTokens:
    """Return items whose vectors stay: eight directions of a plane, six items close to each.

    What all items share lets linear maps tell opposite ones apart, as biases would; routing has none.
    """
    items = items_of_ids(num_items=NUM_ITEMS)
    angles = torch.arange(NUM_ITEMS) // PER_DIRECTION * (2 * math.pi / NUM_DIRECTIONS)
    vectors = 0.1 * torch.randn(NUM_ITEMS, DIM, generator=torch.Generator().manual_seed(3))
    vectors[:, 0] += angles.cos()
    vectors[:, 1] += angles.sin()
    vectors[:, 2] += 0.7
    (table,) = items.parameters()
    table.data.copy_(vectors)
    table.requires_grad_(False)
    return items


def histories(
    num_users: int, seed: int, axes: Sequence[int] = range(NUM_DIRECTIONS // 2)
) -> tuple[list[list[int]], np.ndarray]:
    """Return items of each user, and the two opposite directions (num_users, 2) that they are of.

    Args:
        num_users: rows.
        seed: draws them.
        axes: of the plane, that users like; direction a and its opposite are of axis a.
    """
    rng = np.random.default_rng(seed)
    first = rng.choice(np.asarray(axes), size=num_users)
    likes = np.stack([first, (first + NUM_DIRECTIONS // 2) % NUM_DIRECTIONS], 1)
    which = rng.integers(2, size=(num_users, LENGTH))
    which[:, :2] = [0, 1]  # both are in every history
    rows = np.take_along_axis(likes, which, 1) * PER_DIRECTION + rng.integers(PER_DIRECTION, size=which.shape)
    return rows.tolist(), likes


def trained(
    model: RetrievalModel,
    *,
    steps: int = 150,
    rate: float = 0.02,
    axes: Sequence[int] = range(NUM_DIRECTIONS // 2),
) -> RetrievalModel:
    """Train on users of the planted kind."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=rate)
    with_loss = RetrieverWithLoss(model, world_size=1).train()
    for step in range(steps):
        rows, _ = histories(32, 100 + step, axes)
        batch = training_batch(rows, num_items=NUM_ITEMS)
        optimizer.zero_grad()
        with_loss(all_listed(NUM_ITEMS), batch.places, batch.global_size).loss.backward()
        optimizer.step()
    return model.eval()


def interests_of(model: RetrievalModel, rows: list[list[int]]) -> Tensor:
    """Return (B, M, D) of users whose whole rows are history."""
    batch = users_batch(rows)
    with torch.no_grad():
        vectors = model.queries(model.items(listed_of(batch.items)), batch.places).vectors
    assert vectors is not None
    return vectors if vectors.dim() == 3 else vectors.unsqueeze(1)


def recall_of_interests(model: RetrievalModel, axes: Sequence[int] = range(NUM_DIRECTIONS // 2)) -> float:
    """Return the mean, over both interests of users, of the share of its items in the first twelve.

    The lower of a user's two shares counts: a list of one interest alone is worth nothing.
    """
    rows, likes = histories(64, 7, axes)
    batch = users_batch(rows)
    with torch.no_grad():
        vectors = model.item_vectors(model.items(all_listed(NUM_ITEMS)))
        queries = model.queries(model.items(listed_of(batch.items)), batch.places)
        assert queries.vectors is not None
        scores = queries.vectors.view(len(rows), -1, DIM) @ vectors.T
        if queries.interest_log_probs is not None:
            scores += queries.interest_log_probs.unsqueeze(2)
        scores = scores.amax(1)
    listed = scores.topk(2 * PER_DIRECTION).indices // PER_DIRECTION
    shares = [(listed == torch.from_numpy(likes[:, n : n + 1])).sum(1) / PER_DIRECTION for n in range(2)]
    return float(torch.minimum(*shares).mean())
