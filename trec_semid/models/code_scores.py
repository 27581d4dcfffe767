"""Exact scores of a whole catalogue from parallel heads: the sum of log-probabilities of an item's codes.

score(b, i) = sum over positions r of log p_r(codes[i, r] | user b). Source: Generating Long Semantic IDs in
Parallel for Recommendation (RPG), 2025: positions are independent given the user.

Legend: B users, N items, n of a chunk, R positions, K_r codes of position r.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from trec_semid.core.shapes import expect_shape
from trec_semid.layers.tuple_trie import check_codes
from trec_semid.models.retrieved import Retrieved, best_items, expect_no_nan, expect_positive

_CHUNK_BYTES = {"cpu": 4 * 2**20, "cuda": 512 * 2**20}
"""Bound on the scores of a chunk."""


class ScoreChunk(NamedTuple):
    """Scores of some consecutive items."""

    items: slice
    """Their rows."""
    scores: Tensor
    """(B, n) float32, not contiguous: the users of an item are neighbours in memory."""


def score_chunks(
    log_probs: Sequence[Tensor], codes: Tensor | NDArray[Any], chunk_bytes: int | None = None
) -> Iterator[ScoreChunk]:
    """Score all items, chunk by chunk; memory does not grow with N.

    The heads' (B, K_r) are laid out as one table with a row for each code of each position and a column for
    each user: then an item is a bag of R rows, and one fused kernel reads and sums them. On a CPU that takes
    a fraction of what gathering takes (position by position, or by distinct pairs of positions), and of a
    product with one-hot items.

    Args:
        log_probs: R of (B, K_r).
        codes: (N, R) of all items, below K_r.
        chunk_bytes: bound on the scores of a chunk; what suits the device where not given.

    Raises:
        ConfigError: no users.
        ShapeError: not one head for each position, or heads of different users.
        DataError: no items, or a code that its head does not know.
    """
    sizes = [head.shape[1] for head in log_probs]
    array = codes.cpu().numpy() if isinstance(codes, Tensor) else codes
    check_codes(array, sizes)
    for position, head in enumerate(log_probs):
        expect_shape(head, "B K", f"log-probabilities of position {position}", B=len(log_probs[0]))
    expect_positive(len(log_probs[0]), "users")
    return _score_chunks(log_probs, torch.as_tensor(codes), chunk_bytes)


def score_items(log_probs: Sequence[Tensor], codes: Tensor | NDArray[Any]) -> Tensor:
    """Return (B, N) float32 scores of all items at once.

    Args:
        log_probs: R of (B, K_r).
        codes: (N, R) of all items, below K_r.

    Raises:
        ConfigError: no users.
        ShapeError: not one head for each position, or heads of different users.
        DataError: no items, or a code that its head does not know.
    """
    num_bytes = 4 * len(log_probs[0]) * len(codes)
    return next(score_chunks(log_probs, codes, max(1, num_bytes))).scores


def exact_items(
    log_probs: Sequence[Tensor],
    codes: Tensor | NDArray[Any],
    num_items: int,
    *,
    exclude: Tensor | None = None,
    chunk_bytes: int | None = None,
) -> Retrieved:
    """Return the best items of the whole catalogue, by (score descending, item row ascending).

    Args:
        log_probs: R of (B, K_r).
        codes: (N, R) of all items, below K_r.
        num_items: length of the lists.
        exclude: (B, S) item rows to leave out for each user, filled up with -1.
        chunk_bytes: bound on the scores of a chunk; what suits the device where not given.

    Raises:
        ConfigError: no users, or lists of no items.
        ShapeError: not one head for each position, or heads of different users.
        DataError: no items, a code that its head does not know, or a score that is NaN.
    """
    expect_positive(num_items, "num_items")
    num_users, device = len(log_probs[0]), log_probs[0].device
    best = Retrieved(
        torch.full((num_users, num_items), -1, device=device),
        torch.full((num_users, num_items), -torch.inf, device=device),
        torch.zeros(num_users, dtype=torch.int64, device=device),
    )
    for chunk in score_chunks(log_probs, codes, chunk_bytes):
        scores = chunk.scores if exclude is None else _without(chunk, exclude)
        expect_no_nan(scores)
        first = chunk.items.start
        begin = first
        while begin < chunk.items.stop:
            # Among as many items as came before, about `num_items` are better where the order is random.
            end = min(chunk.items.stop, max(2 * begin, 4 * num_items))
            rows, found = _above(scores[:, begin - first : end - first], begin, best.scores[:, -1])
            both = torch.cat([best.scores, found], 1), torch.cat([best.items, rows], 1)
            best, begin = best_items(*both, num_items), end
    return best


def _score_chunks(
    log_probs: Sequence[Tensor], codes: Tensor, chunk_bytes: int | None
) -> Iterator[ScoreChunk]:
    table = torch.cat(list(log_probs), 1).float().T.contiguous()
    num_users, device = table.shape[1], table.device
    sizes = torch.tensor([head.shape[1] for head in log_probs], dtype=torch.int32)
    firsts = (sizes.cumsum(0, dtype=torch.int32) - sizes).to(device)
    bound = chunk_bytes or _CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cpu"])
    step = max(1, bound // (4 * num_users))
    for start in range(0, len(codes), step):
        rows = codes[start : start + step].to(device, torch.int32) + firsts
        scores = embedding_bag(rows, table, mode="sum").T
        yield ScoreChunk(slice(start, start + len(rows)), scores)


def _without(chunk: ScoreChunk, exclude: Tensor) -> Tensor:
    users, entries = ((exclude >= chunk.items.start) & (exclude < chunk.items.stop)).nonzero(as_tuple=True)
    chunk.scores[users, exclude[users, entries] - chunk.items.start] = -torch.inf
    return chunk.scores


def _above(scores: Tensor, start: int, floors: Tensor) -> tuple[Tensor, Tensor]:
    """Return two (B, C), rows and scores of the few items above what a user's list ends with.

    An equal score is no better: the list's items have lower rows.
    """
    items, users = (floors < scores.T).nonzero(as_tuple=True)
    users, order = users.sort(stable=True)
    items = items[order]
    counts = users.bincount(minlength=len(floors))
    places = torch.arange(len(users), device=users.device) - (counts.cumsum(0) - counts)[users]
    rows = torch.full((len(floors), int(counts.max())), -1, device=users.device)
    found = torch.full_like(rows, -torch.inf, dtype=torch.float32)
    rows[users, places], found[users, places] = items + start, scores[users, items]
    return rows, found
