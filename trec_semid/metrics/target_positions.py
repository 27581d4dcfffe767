"""Where a user's targets stand in a list of the whole catalogue, over chunks of items, exactly.

The list of a user holds every item but the masked ones (those of the user's history), sorted by (score
descending, item row ascending), so items that share all codes, and with them a score, have an order. A
target is never masked, also where the history has it. The position of a target in that list:

    position = 1 + #{items of the list scored above it} + #{items of the list scored equally, row lower}

Other targets of the user are items of the list like any other. With one target a user this is
leave-one-out; with several no two have the same position. An item scored -inf is in no list, so scores that a
beam search leaves at -inf are misses: as a target its position is UNLISTED. Scores are compared in float32.

Memory: one chunk, its comparisons, and the scores that are stored; never users × catalogue.

Legend: B users, T targets of all users (user after user), H masked items (likewise), N length of the
returned lists, n items of a chunk.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from trec_semid.core.errors import DataError, ShapeError
from trec_semid.core.shapes import expect_shape

ChunkScorer = Callable[[slice], Tensor]
"""Gives (B, n) scores of the items from `start` to `stop`, in a tensor of its own that is written into."""

UNLISTED = 2**62
"""Position of a target that is not in the list: behind every cutoff."""
CHUNK_SCORES = 1 << 21
"""Scores of a chunk, unless its number of items is given: 8 MiB, so that work stays near the processor."""
STORED_SCORES = 1 << 26
"""Scores stored between the two looks at them: 256 MiB. Chunks beyond that are scored twice."""
_FEW = 1 << 16
"""Items of a catalogue whose best are selected at once."""
_BLOCK = 64
"""Items whose largest score tells whether one of them can enter the lists."""


class UserItems(NamedTuple):
    """What a batch of users is to be given, and what may not be in their lists; on the scores' device."""

    targets: Tensor
    """(T,) item rows, no item twice for a user."""
    num_targets: Tensor
    """(B,)"""
    masked: Tensor
    """(H,) item rows; items may repeat."""
    num_masked: Tensor
    """(B,)"""


class ListedTargets(NamedTuple):
    """Where the targets stand, and what the users are shown."""

    positions: Tensor
    """(T,) int64, from 1; UNLISTED where a target is scored -inf."""
    top_items: Tensor
    """(B, N) int64 item rows, best first; -1 where the list is shorter."""


class _Pairs(NamedTuple):
    """(user of the batch, item row) pairs."""

    users: Tensor
    items: Tensor

    def within(self, chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return which pairs have their item in a chunk, and their rows and columns in its scores."""
        here = ((self.items >= chunk.start) & (self.items < chunk.stop)).nonzero().squeeze(1)
        return here, self.users[here], self.items[here] - chunk.start


class Stretch(NamedTuple):
    """The items that this process scores of a catalogue that several hold together, each a stretch of rows.

    All of them locate the same targets of the same users, and put together what each says of its own rows.
    """

    items: slice
    """Rows of this process; none where there are fewer items than processes."""
    highest: Callable[[Tensor], Tensor]
    """(T,) to (T,): the highest of all processes' numbers, one by one."""
    total: Callable[[Tensor], Tensor]
    """(T,) to (T,): their sum."""
    merge: "Callable[[TopItems], TopItems]"
    """The (B, N) best of this stretch, to those that are best over all stretches; of all users, or of those
    that this process is to list."""


class TopItems(NamedTuple):
    """The best N items of each user, sorted; score -inf and item -1 where there are fewer."""

    scores: Tensor
    """(B, N) float32."""
    items: Tensor
    """(B, N) int64 item rows."""


@torch.no_grad()
def locate_targets(
    score: ChunkScorer,
    users: UserItems,
    num_items: int,
    *,
    list_length: int = 100,
    chunk_items: int | None = None,
    stored_scores: int = STORED_SCORES,
    stretch: Stretch | None = None,
) -> ListedTargets:
    """Rank the targets of a batch of users among the whole catalogue; see the head of this module.

    A target's own score must be known before items above it are counted, so every chunk is looked at
    twice. Chunks are stored in between as far as `stored_scores` goes, and scored again beyond that: take
    B <= stored_scores / num_items users at once to score each item once.

    Args:
        score: gives the scores of any range of items; the same ones, to the bit, when asked again.
        users: the batch.
        num_items: size of the catalogue.
        list_length: N.
        chunk_items: n; as many as make up CHUNK_SCORES where not given.
        stored_scores: how many scores to store.
        stretch: what this process scores where several do; everything where not given.

    Raises:
        ShapeError: lengths do not add up, or scores of another shape than (B, n).
        DataError: NaN scores, item rows that the catalogue does not have, a target that a user has twice,
            or a scorer that gives an item two scores.
    """
    targets, masked = _targets_and_masked(users, num_items)
    num_users = len(users.num_targets)
    chunks = _chunks(stretch.items if stretch else slice(0, num_items), num_users, chunk_items)
    own = torch.full((len(targets.items),), -torch.inf, device=targets.items.device)
    top = no_items(num_users, list_length, own.device)
    stored: dict[int, Tensor] = {}
    num_scores = 0
    for number, chunk in enumerate(chunks):
        scores = _masked_scores(score, chunk, masked, num_users)
        here, row, column = targets.within(chunk)
        own[here] = scores[row, column]
        top = _with_chunk(top, scores, chunk.start, is_first=number == 0)
        num_scores += scores.numel()
        if num_scores <= stored_scores:
            stored[chunk.start] = scores
    # A target's score is known where its row lies, and is -inf in all other processes.
    own = stretch.highest(own) if stretch else own
    ahead = torch.zeros_like(targets.items)
    for chunk in chunks:
        scores = stored.pop(chunk.start, None)
        if scores is None:
            scores = _masked_scores(score, chunk, masked, num_users)
        # A scorer that answers otherwise when asked again, as with dropout on, would give wrong positions
        # silently.
        _expect_same(own, scores, targets, chunk)
        _count_ahead(ahead, own, scores, targets, chunk)
    ahead = stretch.total(ahead) if stretch else ahead
    top = stretch.merge(top) if stretch else top
    return ListedTargets(torch.where(own == -torch.inf, UNLISTED, 1 + ahead), top.items)


@torch.no_grad()
def list_top_items(
    score: ChunkScorer,
    users: UserItems,
    num_items: int,
    *,
    list_length: int,
    stretch: Stretch | None = None,
) -> TopItems:
    """Return the first N of each user's list with their scores: `locate_targets` without the positions.

    Every chunk is looked at once and none is stored, so any number of users may be given.

    Args:
        score: gives the (B, n) scores of any range of items.
        users: the batch; what their targets are matters only in that a target is never masked.
        num_items: size of the catalogue.
        list_length: N.
        stretch: what this process scores where several do; everything where not given.

    Raises:
        ShapeError: lengths do not add up, or scores of another shape than (B, n).
        DataError: NaN scores, item rows that the catalogue does not have, or a target that a user has twice.
    """
    _, masked = _targets_and_masked(users, num_items)
    num_users = len(users.num_targets)
    top = no_items(num_users, list_length, masked.items.device)
    items = stretch.items if stretch else slice(0, num_items)
    for number, chunk in enumerate(_chunks(items, num_users, None)):
        scores = _masked_scores(score, chunk, masked, num_users)
        if stretch is None and chunk == slice(0, num_items) and num_items <= _FEW:
            best = _of_few(scores, list_length)
            if best is not None:
                return best
        top = _with_chunk(top, scores, chunk.start, is_first=number == 0)
    return stretch.merge(top) if stretch else top


def no_items(num_users: int, length: int, device: torch.device) -> TopItems:
    """Return lists of B users that hold nothing yet."""
    nowhere = torch.full((num_users, length), -1, device=device)
    return TopItems(torch.full(nowhere.shape, -torch.inf, device=device), nowhere)


def _chunks(items: slice, num_users: int, chunk_items: int | None) -> list[slice]:
    width = chunk_items or max(_BLOCK, CHUNK_SCORES // max(1, num_users) // _BLOCK * _BLOCK)
    starts = range(items.start, items.stop, width)
    return [slice(start, min(start + width, items.stop)) for start in starts]


def positions_in_lists(top_items: Tensor, targets: Tensor, num_targets: Tensor) -> Tensor:
    """Return (T,) the place of each target in its user's list, from 1; UNLISTED where it is not there.

    For lists that are built without scores of the whole catalogue, as by a beam search; what may not be in
    them is then up to who makes them.

    Args:
        top_items: (B, N) item rows, best first, none twice.
        targets: (T,) item rows.
        num_targets: (B,)
    """
    expect_shape(top_items, "B N", "top_items", B=len(num_targets))
    targets_of = _pairs(targets, num_targets, "targets")
    hits = top_items[targets_of.users] == targets[:, None]
    return torch.where(hits.any(1), 1 + hits.int().argmax(1), UNLISTED)


def _masked_scores(score: ChunkScorer, chunk: slice, masked: _Pairs, num_users: int) -> Tensor:
    scores = score(chunk).float()
    expect_shape(scores, "B n", "scores", B=num_users, n=chunk.stop - chunk.start)
    _, row, column = masked.within(chunk)
    scores[row, column] = -torch.inf
    return scores


def _with_chunk(top: TopItems, scores: Tensor, start: int, *, is_first: bool) -> TopItems:
    """Merge a chunk into the lists.

    Rows of a chunk come after all rows listed so far and candidates come in ascending order, so a stable
    sort by score keeps the order of ties, and what ties with the last of a full list is out. The first chunk
    has no list to be held against, so its own blocks say what cannot enter.
    """
    num_users, length = top.scores.shape
    blocks = _in_blocks(scores, _first_block(scores.shape[1], length) if is_first else _BLOCK)
    highest = blocks.amax(2)
    _expect_numbers(highest)
    floor = top.scores[:, -1]
    if is_first and highest.shape[1] >= length:  # as many blocks as places reach this score
        floor = _below(highest.topk(length).values[:, -1])
    user, block = (highest > floor[:, None]).nonzero(as_tuple=True)
    candidate, column = (blocks[user, block] > floor[user, None]).nonzero(as_tuple=True)
    user, column = user[candidate], block[candidate] * blocks.shape[2] + column
    counts = torch.bincount(user, minlength=num_users)
    place = torch.arange(len(user), device=user.device) - (counts.cumsum(0) - counts)[user]
    most = int(place.max()) + 1 if len(place) else 0
    all_scores = functional.pad(top.scores, (0, most), value=-torch.inf)
    all_items = functional.pad(top.items, (0, most), value=-1)
    all_scores[user, length + place] = scores[user, column]
    all_items[user, length + place] = start + column
    best, order = all_scores.sort(dim=1, descending=True, stable=True)
    return TopItems(best[:, :length], all_items.gather(1, order[:, :length]))


def _of_few(scores: Tensor, length: int) -> TopItems | None:
    """Return the lists of (B, n) scores of all items; None where others tie with the last of a list.

    One selection: of a small catalogue it takes a fifth of the time of what `_with_chunk` does.
    """
    num_listed = min(length, scores.shape[1])
    best, items = scores.topk(min(length + 1, scores.shape[1]))
    _expect_numbers(best)  # NaN counts as the highest
    if best.shape[1] > num_listed:
        last = best[:, num_listed - 1]
        if ((last == best[:, num_listed]) & (last > -torch.inf)).any():
            return None
        best, items = best[:, :num_listed], items[:, :num_listed]
    items, order = items.sort(1)
    best, order = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    items = items.gather(1, order).masked_fill_(best == -torch.inf, -1)
    if num_listed < length:
        best = functional.pad(best, (0, length - num_listed), value=-torch.inf)
        items = functional.pad(items, (0, length - num_listed), value=-1)
    return TopItems(best, items)


def _first_block(num_items: int, length: int) -> int:
    """Return a power of two: small enough for twice as many blocks as places, if there are as many items."""
    return min(_BLOCK, 1 << (max(num_items // (2 * length), 1).bit_length() - 1))


def _in_blocks(scores: Tensor, block: int) -> Tensor:
    num_users, num_items = scores.shape
    num_blocks = -(-num_items // block)
    if num_items % block:  # else there is nothing to pad, and padding copies
        scores = functional.pad(scores, (0, num_blocks * block - num_items), value=-torch.inf)
    return scores.reshape(num_users, num_blocks, block)


def _count_ahead(ahead: Tensor, own: Tensor, scores: Tensor, targets: _Pairs, chunk: slice) -> None:
    """Add to (T,) `ahead` the items of a chunk that come before each target.

    Before a target's own chunk ties are ahead of it, after it they are not. Within it they are looked at
    one by one, where there are any. Targets are taken B at a time, so that memory is that of the chunk.
    """
    at_most = max(1, len(scores))
    for part in torch.arange(len(own), device=own.device).split(at_most):
        user, item, mine = targets.users[part], targets.items[part], own[part]
        rows = scores if _is_each_once(user, len(scores)) else scores[user]
        ahead[part] += _num_above(rows, torch.where(item >= chunk.stop, _below(mine), mine))
        here = ((item >= chunk.start) & (item < chunk.stop)).nonzero().squeeze(1)
        num_equal = _num_above(rows[here], _below(mine[here])) - _num_above(rows[here], mine[here])
        here = here[num_equal > 1]  # the target equals itself
        column = torch.arange(chunk.start, chunk.stop, device=own.device)
        tied = (rows[here] == mine[here, None]) & (column < item[here, None])
        ahead[part[here]] += tied.sum(1)


def _num_above(scores: Tensor, floor: Tensor) -> Tensor:
    """Return (b,) how many of each row of (b, n) scores are above a floor: exact below 2^24 items."""
    above = torch.empty(scores.shape, device=scores.device)  # floats: many times faster to sum than bools
    return torch.gt(scores, floor[:, None], out=above).sum(1).long()


def _below(values: Tensor) -> Tensor:
    """Return the next float32 below each y, so that x > that says x >= y."""
    return torch.nextafter(values, values.new_tensor(-torch.inf))


def _is_each_once(user: Tensor, num_users: int) -> bool:
    return len(user) == num_users and bool((user == torch.arange(num_users, device=user.device)).all())


def _targets_and_masked(users: UserItems, num_items: int) -> tuple[_Pairs, _Pairs]:
    targets = _pairs(users.targets, users.num_targets, "targets")
    masked = _pairs(users.masked, users.num_masked, "masked")
    if len(users.num_targets) != len(users.num_masked):
        problem = f"{len(users.num_targets)} users with targets, but {len(users.num_masked)} with masks"
        raise ShapeError(f"users: {problem}.")
    for name, pairs in (("targets", targets), ("masked", masked)):
        outside = ((pairs.items < 0) | (pairs.items >= num_items)).nonzero()
        if len(outside):
            row, remedy = int(outside[0]), f"The catalogue has rows 0 to {num_items - 1}"
            value = int(pairs.items[row])
            raise DataError("no such item", row=row + 1, field=name, value=value, remedy=remedy)
    if not len(targets.items):
        return targets, masked
    keys, masked_keys = (pairs.users * num_items + pairs.items for pairs in (targets, masked))
    different, times = keys.unique(return_counts=True)
    if len(different) < len(keys):
        item = int(different[times > 1][0]) % num_items
        remedy = "Count an item once a user: distinct_targets"
        raise DataError("user has a target twice", field="targets", value=item, remedy=remedy)
    # A target stays in the list though the history has it: masked, it could never be listed.
    free = ~torch.isin(masked_keys, keys)
    return targets, _Pairs(masked.users[free], masked.items[free])


def _pairs(items: Tensor, lengths: Tensor, name: str) -> _Pairs:
    if len(items) != int(lengths.sum()):
        raise ShapeError(f"{name}: {len(items)} items, but lengths sum up to {int(lengths.sum())}.")
    return _Pairs(torch.repeat_interleave(lengths), items.long())


def _expect_numbers(highest: Tensor) -> None:
    """Refuse NaN, which the largest of a block shows."""
    wrong = highest.isnan().any(1).nonzero()
    if len(wrong):
        remedy = "Lower the learning rate"
        raise DataError("score is NaN", row=int(wrong[0]) + 1, field="score", remedy=remedy)


def _expect_same(own: Tensor, scores: Tensor, targets: _Pairs, chunk: slice) -> None:
    here, row, column = targets.within(chunk)
    if not torch.equal(own[here], scores[row, column]):
        remedy = "Put the model into evaluation mode, or take fewer users at once so that scores are stored"
        raise DataError("scorer gives an item two scores", field="score", remedy=remedy)
