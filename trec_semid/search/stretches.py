"""Exact lists where each rank holds a stretch of the catalogue: users go to all stretches, results come back.

Every rank scores its stretch for the users of all ranks. A target's score is the highest over stretches,
since all others have none of it; what stands before it is counted in each and summed; the best of each
stretch go to the rank whose user it is, in the order of rows, so that of equal scores the lower row stands
first, as with one rank. No rank holds the vectors, or the scores, of more than its stretch.

Legend: B users of all ranks, T their targets, W ranks, N length of the lists.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from trec_semid.metrics.target_positions import Stretch, TopItems, UserItems
from trec_semid.models.queries import Queries
from trec_semid.search.catalogue import Catalogue


class Together(NamedTuple):
    """The users of all ranks, in the order of ranks."""

    queries: tuple[Queries, ...]
    users: UserItems
    num_users: tuple[int, ...]
    """W, of each rank."""
    num_targets: tuple[int, ...]
    """W, targets of each rank's users."""

    def stretch(self, rows: slice) -> Stretch:
        """Return how this rank, which holds these rows, and its peers put together what they find."""
        return Stretch(rows, _highest, _total, self.merge)

    def own_targets(self) -> slice:
        """Return which of the T targets are of this rank's users."""
        rank = dist.get_rank()
        first = sum(self.num_targets[:rank])
        return slice(first, first + self.num_targets[rank])

    def merge(self, best: TopItems) -> TopItems:
        """Return the (b, N) best items of this rank's users, of the (B, N) best of each rank's stretch."""
        scores = _to_owners(best.scores, self.num_users)  # (W, b, N)
        items = _to_owners(best.items, self.num_users)
        side_by_side = scores.transpose(0, 1).flatten(1)
        # Stretches come in the order of rows, and within each equal scores do: a stable sort keeps both.
        ordered, order = side_by_side.sort(dim=1, descending=True, stable=True)
        length = best.scores.shape[1]
        of_all = items.transpose(0, 1).flatten(1).gather(1, order[:, :length])
        return TopItems(ordered[:, :length], of_all)


def bring_together(queries: Sequence[Queries], users: UserItems) -> Together:
    """Return all ranks' users; all ranks call it, also one without users.

    Args:
        queries: of each model that scores, of this rank's users.
        users: their targets and what is not listed.
    """
    # Ranks have unequally many: lengths go round first, so that what is filled up can be cut off again.
    sizes = torch.tensor([len(users.num_targets), len(users.targets), len(users.masked)])
    all_sizes = gather_rows(sizes.to(users.targets.device)).view(-1, 3).tolist()
    num_users, num_targets, num_masked = zip(*all_sizes, strict=True)
    vectors = [_all_rows(each.vectors, num_users) for each in queries]
    log_probs = [_all_rows(each.code_log_probs, num_users) for each in queries]
    interests = [_all_rows(each.interest_log_probs, num_users) for each in queries]
    return Together(
        tuple(Queries(*parts) for parts in zip(vectors, log_probs, interests, strict=True)),
        UserItems(
            _rows_of_ranks(users.targets, num_targets),
            _rows_of_ranks(users.num_targets, num_users),
            _rows_of_ranks(users.masked, num_masked),
            _rows_of_ranks(users.num_masked, num_users),
        ),
        num_users,
        num_targets,
    )


def vectors_of(catalogue: Catalogue, rows: Tensor) -> Tensor:
    """Return (..., D) the vectors of some items, from the ranks whose stretch they are in; all ranks call it.

    Args:
        catalogue: with item vectors.
        rows: (...) item rows; a row of -1 gives some vector.
    """
    own = catalogue.vectors
    assert own is not None, "items have no vectors"
    if not catalogue.is_shared:
        return own[rows]
    different, back = rows.unique(return_inverse=True)
    sizes = gather_rows(torch.tensor([len(different)], device=rows.device)).tolist()
    asked = _rows_of_ranks(different, sizes) - catalogue.first_row
    is_here = (asked >= 0) & (asked < len(own))
    # One rank has each item, and all others add nothing.
    parts = own.new_zeros((len(asked), own.shape[1]))
    parts[is_here] = own[asked[is_here]]
    return _to_owners(parts, sizes).sum(0)[back]


def highest_of_stretches(
    queries: Queries, items: Tensor, score: Callable[[Queries, Tensor], Tensor]
) -> Tensor:
    """Return (b, C) scores of the items that this rank's b users ask for; all ranks call it.

    Args:
        queries: of this rank's users.
        items: (b, C) item rows.
        score: gives (B, C) scores of the users of all ranks, -inf of items that are not in this stretch.
    """
    num_users = gather_rows(torch.tensor([len(items)], device=items.device)).tolist()
    parts = [_all_rows(part, num_users) for part in queries]
    scores = _highest(score(Queries(*parts), _rows_of_ranks(items, num_users)))
    rank = dist.get_rank()
    return scores[sum(num_users[:rank]) : sum(num_users[: rank + 1])]


def _all_rows(part: Tensor | None, lengths: Sequence[int]) -> Tensor | None:
    return None if part is None else _rows_of_ranks(part, lengths)


def _rows_of_ranks(part: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return all ranks' rows, rank after rank, of which each has so many; collectives want equally many."""
    longest = max(lengths)
    room = [0, 0] * (part.dim() - 1) + [0, longest - len(part)]
    gathered = gather_rows(pad(part, room)).unflatten(0, (len(lengths), longest))
    return torch.cat([rows[:length] for rows, length in zip(gathered, lengths, strict=True)])


def gather_rows(part: Tensor) -> Tensor:
    """Return (W * n, ...) of each rank's (n, ...), all equally many; all ranks call it."""
    whole = part.new_empty((dist.get_world_size() * len(part), *part.shape[1:]))
    dist.all_gather_into_tensor(whole, part.contiguous())
    return whole


def _to_owners(part: Tensor, num_users: Sequence[int]) -> Tensor:
    """Send each rank the rows of its users; return (W, b, N): what each rank says of this one's."""
    own, world_size = num_users[dist.get_rank()], len(num_users)
    # Each rank has rows of all users and sends every owner its own; that gets its users from each stretch.
    received = part.new_empty((world_size * own, part.shape[1]))
    dist.all_to_all_single(received, part.contiguous(), [own] * world_size, list(num_users))
    return received.unflatten(0, (world_size, own))


def _highest(values: Tensor) -> Tensor:
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def _total(values: Tensor) -> Tensor:
    dist.all_reduce(values, dist.ReduceOp.SUM)
    return values
