"""How far apart interests are and how varied lists are, as means over the first so many users of a split.

    interest_cosine         of pairs of a user's interests
    interest_overlap@N      Jaccard index of pairs of the interests' own first N items
    own_interest_share@N    of the first N items: those whose nearest interest is the one that listed them
    categories@N            different categories among the first N items
    list_distance@N         mean of 1 - cosine over pairs of the first N items

Definitions are in `metrics.interests`; users for whom a number is not defined are left out of its mean.

Legend: B users, M interests of a user, N length of the lists, V categories of an item, D width.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, final

from pydantic import PositiveInt
from torch import Tensor

from trec_semid.core.config import Config
from trec_semid.metrics.interests import (
    interest_cosine,
    interest_overlap,
    list_distance,
    num_categories,
    own_interest_share,
    union_of_lists,
)
from trec_semid.runtime.ranks import gather_objects

_UNIT = 2**32


class ListMetricsConfig(Config):
    """What is said of interests and lists, beside where targets stand."""

    num_users: PositiveInt = 10_000
    """Users of each split, the first that have a history."""
    category_field: str | None = None
    """Item field: `categories@N` counts its values in each list."""
    distance: bool = False
    """Whether `list_distance@N` is taken, of the item vectors that lists are made by."""
    state_rank: bool = False
    """Whether `state_rank` is taken: how many directions the states of these users use
    (`metrics.effective_rank`)."""


class ListedInterests(NamedTuple):
    """What lists of B users were made from."""

    interests: Tensor
    """(B, M, D)"""
    exists: Tensor
    """(B, M) bool: which interests list anything."""
    lists: Tensor
    """(B, M, N) item rows that each interest lists by itself; -1 after the last."""
    listed_by: Tensor
    """(B, N) whose each item of the merged list is; -1 after the last."""
    vectors: Tensor
    """(B, N, D) of the items of the merged list."""


def interest_values(listed: ListedInterests, cutoffs: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield names and (B,) values of what is said of interests.

    Args:
        listed: of B users with several interests.
        cutoffs: each N.
    """
    yield "interest_cosine", interest_cosine(listed.interests, listed.exists)
    overlaps = interest_overlap(union_of_lists(listed.lists), cutoffs)
    yield from _named("interest_overlap", overlaps, cutoffs)
    of = listed.vectors, listed.interests, listed.exists, listed.listed_by
    yield from _named("own_interest_share", own_interest_share(*of, cutoffs), cutoffs)


def distance_values(vectors: Tensor, items: Tensor, cutoffs: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield names and (B,) values of the distance between listed items.

    Args:
        vectors: (B, N, D) of these items.
        items: (B, N) item rows of the lists; -1 after the last.
        cutoffs: each N.
    """
    yield from _named("list_distance", list_distance(vectors, items >= 0, cutoffs), cutoffs)


def category_values(
    categories: Tensor, items: Tensor, cutoffs: Sequence[int]
) -> Iterator[tuple[str, Tensor]]:
    """Yield names and (B,) values of how many categories are listed.

    Args:
        categories: (N_all, V) category ids of all items, filled up with -1.
        items: (B, N) item rows of the lists; -1 after the last.
        cutoffs: each N.
    """
    # An absent item, of row -1, reads the last item's categories, which are then left out.
    listed = categories[items].masked_fill((items < 0).unsqueeze(2), -1)
    yield from _named("categories", num_categories(listed, cutoffs), cutoffs)


@final
class ListMeans:
    """Means over all users that any rank has given, the same in any order and on any number of ranks.

    Each user's number is rounded to a multiple of 2^-32, and integers are summed.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, int]] = {}
        self._num_users = 0

    def update(self, values: Iterable[tuple[str, Tensor]], num_users: int) -> None:
        """Take B users of this rank.

        Args:
            values: names and (B,) numbers; NaN where a number is not defined.
            num_users: B, each user once over all calls and ranks.
        """
        self._num_users += num_users
        for name, of_users in values:
            defined = of_users[~of_users.isnan()].double()
            total, count = self._sums.get(name, (0, 0))
            self._sums[name] = (
                total + int((defined * _UNIT).round().long().sum()),
                count + len(defined),
            )

    def result(self) -> tuple[dict[str, float], int]:
        """Return means by name, and the number of users, over all ranks. All ranks call it."""
        of_ranks = gather_objects((self._sums, self._num_users))
        names = dict.fromkeys(name for sums, _ in of_ranks for name in sums)
        means: dict[str, float] = {}
        for name in names:
            totals, counts = zip(*(sums.get(name, (0, 0)) for sums, _ in of_ranks), strict=True)
            if sum(counts):
                # Python's integers have no bounds here, and the only rounding is that of this division.
                means[name] = sum(totals) / (sum(counts) * _UNIT)
        return means, sum(num_users for _, num_users in of_ranks)


def _named(name: str, values: Tensor, cutoffs: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    for cutoff, of_users in zip(cutoffs, values.unbind(1), strict=True):
        yield f"{name}@{cutoff}", of_users
