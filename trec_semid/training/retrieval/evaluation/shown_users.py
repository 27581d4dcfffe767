"""A few users of the validation split, with what their interests and lists are made of, for the report.

Legend: B users of this rank, M interests, T times, D width.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from trec_semid.core.arrays import Array
from trec_semid.core.seeds import numpy_generator
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.sequences import EvaluationRows
from trec_semid.evaluation.shown_interests import UserVectors, draw_user
from trec_semid.metrics.target_positions import UserItems
from trec_semid.runtime.ranks import Ranks, gather_objects
from trec_semid.training.retrieval.evaluation.merging import MergingLister

NUM_USERS = 4
NUM_TIMES = 10
"""Events after each of which the interests are shown."""
NUM_LISTED = 10
NUM_HISTORY = 30
"""Latest items of a history that are shown."""


def shown_users(
    merging: MergingLister,
    rows: EvaluationRows,
    users_of: Callable[[Array], UserItems],
    ranks: Ranks,
    *,
    seed: int,
    max_len: int,
) -> list[dict[str, Any]]:
    """Return what is shown of a few users, the same on every rank; all of them call it.

    Args:
        merging: begun; makes the lists.
        rows: of the split.
        users_of: gives what may not be listed, of (B,) users of the split.
        ranks: this process among its peers.
        seed: of the choice of users.
        max_len: items that the model reads.
    """
    own = choose_users(rows, seed)[ranks.rank :: ranks.world_size]
    listed, merged = merging.listed(rows.histories, own, users_of(own), NUM_LISTED)
    histories = _latest(rows.earlier, own, NUM_HISTORY)
    items, lengths = histories.take(np.arange(len(own)))
    of_history = merging.item_vectors(torch.from_numpy(items).to(ranks.device)).float().cpu().numpy()
    ends = np.cumsum(lengths)
    paths = merging.interests(_times(rows.earlier, own, max_len), np.arange(len(own) * NUM_TIMES))
    paths = paths.float().cpu().unflatten(0, (len(own), NUM_TIMES)).numpy()
    exists = listed.exists.cpu().numpy()
    shown = []
    for user, row in enumerate(own.tolist()):
        places = merged.items[user] >= 0
        targets, _ = rows.targets.take(np.array([row]))
        here = slice(int(ends[user] - lengths[user]), int(ends[user]))
        vectors = listed.vectors[user][places].float().cpu().numpy()
        shown.append(
            draw_user(
                UserVectors(
                    int(rows.users[row]),
                    targets,
                    items[here],
                    merged.items[user][places].cpu().numpy(),
                    merged.listed_by[user][places].cpu().numpy(),
                    np.concatenate((of_history[here], vectors)),
                    np.where(exists[user][None, :, None], paths[user], np.nan),
                )
            )
        )
    together = [user for of_rank in gather_objects(shown) for user in of_rank]
    return sorted(together, key=lambda user: user["user_row"])


def choose_users(rows: EvaluationRows, seed: int) -> Array:
    """Return (n,) rows of users drawn by a seed, of those with as many events as are shown, or of any."""
    lengths = rows.earlier.lengths
    able = np.flatnonzero(lengths >= NUM_TIMES)
    able = able if len(able) >= NUM_USERS else np.flatnonzero(lengths > 0)
    return np.sort(numpy_generator(seed, "users with interests").permutation(able)[:NUM_USERS])


def _latest(earlier: Ragged, chosen: Array, most: int) -> Ragged:
    """Return the latest items of what (n,) users did."""
    lengths = np.minimum(earlier.lengths[chosen], most)
    return Ragged(earlier.starts[chosen] + earlier.lengths[chosen] - lengths, lengths, earlier.values)


def _times(earlier: Ragged, chosen: Array, max_len: int) -> Ragged:
    """Return (n * T) histories: each user's as they were T - 1, ..., 1, 0 events ago, of an item at least."""
    ago = np.arange(NUM_TIMES)[::-1]
    ends = np.maximum(earlier.lengths[chosen][:, None] - ago, 1)
    lengths = np.minimum(ends, max_len)
    starts = earlier.starts[chosen][:, None] + ends - lengths
    return Ragged(starts.ravel(), lengths.ravel(), earlier.values)
