"""Lists of retrieved items, in one stated order: score descending, then item row ascending.

Legend: B users, C candidates, S items to leave out.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trec_semid.core.errors import ConfigError, DataError
from trec_semid.metrics.target_positions import UserItems

_LOW_BITS = 2**31 - 1


class Retrieved(NamedTuple):
    """The best items of each user."""

    items: Tensor
    """(B, num_items) int64: item rows; -1 after the last."""
    scores: Tensor
    """(B, num_items) float32; -inf after the last."""
    lengths: Tensor
    """(B,) int64: items that each list has."""


def top_places(scores: Tensor, ties: Tensor, k: int) -> Tensor:
    """Return (B, k) int64: places of the k highest scores, in order; equal scores go by ascending `ties`.

    Both go into one integer, the score's float32 bits above the tie's, so the result is the same on every
    device and at any C, which `topk` of the scores alone does not promise.

    Args:
        scores: (B, C) float.
        ties: (B, C) or (C,) int64 in 0..2^31-1, those of one row all different.
        k: at most C.
    """
    bits = (scores.float() + 0.0).view(torch.int32)  # -0.0 + 0.0 = 0.0: one zero
    # Floats are ordered as integers are, but for the negative ones, which run backwards.
    ordered = (bits >> 31).bitwise_and_(_LOW_BITS).bitwise_xor_(bits)
    # Less the tie: topk takes the highest keys, and of equal scores the lower row is to win.
    keys = ordered.long().mul_(2**32).sub_(ties)
    return keys.topk(k, dim=1).indices


def best_items(scores: Tensor, rows: Tensor, num_items: int) -> Retrieved:
    """Order candidates and keep the best `num_items`; those of score -inf are none.

    Args:
        scores: (B, C) float.
        rows: (B, C) or (C,) item rows, no item twice for a user.
        num_items: length of the lists.

    Raises:
        DataError: a score is NaN.
    """
    expect_no_nan(scores)
    places = top_places(scores, rows, min(num_items, scores.shape[1]))
    best = scores.gather(1, places).float()
    exists = best > -torch.inf
    items = rows.expand_as(scores).gather(1, places).masked_fill_(~exists, -1)
    room = (0, num_items - best.shape[1])
    return Retrieved(
        torch.nn.functional.pad(items, room, value=-1),
        torch.nn.functional.pad(best, room, value=-torch.inf),
        exists.sum(1),
    )


def agreement(listed: Tensor, exact: Tensor) -> Tensor:
    """Return (B,) float32: the share of the exact list's items that are listed too, whatever their place.

    A user whose exact list is empty counts 1.

    Args:
        listed: (B, N) item rows of a beam search, say; -1 after the last.
        exact: (B, N) item rows of all items.
    """
    same = (exact.unsqueeze(2) == listed.unsqueeze(1)).any(2) & (exact >= 0)
    lengths = (exact >= 0).sum(1)
    return torch.where(lengths > 0, same.sum(1) / lengths.clamp(min=1), 1.0)


def is_excluded(rows: Tensor, exclude: Tensor) -> Tensor:
    """Return (B, C) bool: whether a user's candidate is among the items to leave out for that user.

    Args:
        rows: (B, C) item rows.
        exclude: (B, S) item rows in any order, filled up with -1.
    """
    if not exclude.shape[1]:
        return torch.zeros_like(rows, dtype=torch.bool)
    # The filling of -1 goes to the front and is equal to no row.
    ordered = exclude.sort(1).values
    places = torch.searchsorted(ordered, rows).clamp_(max=exclude.shape[1] - 1)
    return ordered.gather(1, places) == rows


def unlisted_rows(users: UserItems) -> Tensor:
    """Return (B, S) the masked items of B users that are no targets of theirs, filled up with -1.

    Args:
        users: the batch; S is the most masked items that one of them has.
    """
    num_users = len(users.num_masked)
    if not len(users.masked):
        return users.masked.new_zeros((num_users, 0))
    owners = torch.repeat_interleave(torch.arange(num_users, device=users.masked.device), users.num_masked)
    place = torch.arange(len(owners), device=owners.device)
    place = place - torch.repeat_interleave(users.num_masked.cumsum(0) - users.num_masked, users.num_masked)
    rows = torch.full((num_users, int(users.num_masked.max())), -1, device=owners.device)
    rows[owners, place] = users.masked
    if len(users.targets):
        targets = torch.repeat_interleave(torch.arange(num_users, device=owners.device), users.num_targets)
        stride = 1 + torch.maximum(users.masked.max(), users.targets.max())
        is_target = torch.isin(owners * stride + users.masked, targets * stride + users.targets)
        rows[owners[is_target], place[is_target]] = -1
    return rows


def expect_no_nan(scores: Tensor) -> None:
    """Refuse scores that have no order.

    Args:
        scores: (B, C).

    Raises:
        DataError: a score is NaN.
    """
    # amax hands a NaN on, so B flags are written and read, not B * C.
    wrong = scores.amax(1).isnan()
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise DataError("score is NaN", row=row + 1, field="score", remedy="Lower the learning rate")


def expect_positive(count: int, name: str) -> None:
    """Refuse a count under 1.

    Args:
        count: of users, beams or list places.
        name: how the error calls it.

    Raises:
        ConfigError: it is under 1.
    """
    if count < 1:
        raise ConfigError(f"{name}: too few to retrieve with (got {count}, expected 1 or more). Raise it.")
