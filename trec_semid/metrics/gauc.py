"""GAUC: the AUC within each user, averaged by impressions."""

from collections.abc import Iterable
from functools import reduce
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike

from trec_semid.core.arrays import Array, Floats, Ints
from trec_semid.core.errors import DataError
from trec_semid.metrics.exchange import MAX_ROWS_IN_MEMORY, SortedRuns, count_pairs_over_ranks
from trec_semid.metrics.keys import (
    check_float32,
    check_labels,
    check_scores,
    check_users,
    dense_users,
    pack,
    sort_keys,
)
from trec_semid.metrics.pairs import PairCounts, count_pairs
from trec_semid.runtime.ranks import gather_objects


class GroupAuc(NamedTuple):
    """GAUC and what it was taken over."""

    gauc: float
    """Mean of the users' AUC, each weighted by its number of rows."""
    user_mean: float
    """Mean of the users' AUC, each counted once."""
    num_users: int
    """Users with both classes: those that count."""
    num_one_class: int
    """Users with one class, left out."""
    num_rows: int
    """Rows of the users that count."""


class PerUser(NamedTuple):
    """AUC of each user."""

    users: Array
    """(U,) ascending, as given."""
    rows: Ints
    positives: Ints
    auc: Floats
    """(U,) NaN for a user with one class."""


def per_user_auc(scores: ArrayLike, labels: ArrayLike, users: ArrayLike) -> PerUser:
    """Return the AUC of each user, ties one half, exactly.

    Args:
        scores: (N,) any monotone scale, compared in its own precision.
        labels: (N,) 0 or 1.
        users: (N,) whose row it is: integers, fastest when dense from 0; need not be sorted.

    Raises:
        ShapeError: the lengths differ.
        DataError: a score is NaN, or a label is neither 0 nor 1.
    """
    checked = check_scores(scores)
    truth = check_labels(labels, len(checked))
    dense, names = dense_users(users, len(checked))
    keys = pack(checked, truth, dense)
    sort_keys(keys)
    counts = count_pairs(keys)
    present = counts.users if names is None else names[counts.users]
    return PerUser(present, counts.negatives + counts.positives, counts.positives, counts.auc)


def gauc(scores: ArrayLike, labels: ArrayLike, users: ArrayLike) -> GroupAuc:
    """Area under the ROC curve within each user, averaged by impressions.

    GAUC = Σ_u n_u · AUC_u / Σ_u n_u over the users with both classes, n_u = rows of user u; ties
    count one half. Source: Zhu et al., "Optimized Cost per Click in Taobao Display Advertising",
    2017, with impressions as weights.

    Args:
        scores: (N,) any monotone scale, compared in its own precision.
        labels: (N,) 0 or 1.
        users: (N,) whose row it is; need not be sorted.

    Raises:
        ShapeError: the lengths differ.
        DataError: a score is NaN, a label is neither 0 nor 1, or no user has both classes.
    """
    each = per_user_auc(scores, labels, users)
    sums = _Sums.of(each.rows, each.auc)
    if not sums.num_users:
        raise DataError(
            f"GAUC needs a user with both classes; here are {len(each.users)} users without",
            field="label",
            remedy="Evaluate on more rows of each user, or look at AUC alone",
        )
    return sums.group_auc()


@final
class GaucAccumulator:
    """GAUC over all rows that any rank has given, exact, in bounded memory; see `metrics.exchange`.

    A user's rows may come in any updates, on any ranks. Scores are float32 and users dense rows, so
    that rows of different updates and ranks can be compared as packed.
    """

    def __init__(self, *, max_rows: int = MAX_ROWS_IN_MEMORY) -> None:
        self.rows = SortedRuns(max_rows)

    def update(self, scores: ArrayLike, labels: ArrayLike, users: ArrayLike) -> None:
        """Take (N,) float32 scores, (N,) labels and (N,) user rows below 2^31 of this rank.

        Raises:
            ShapeError: the lengths differ.
            DataError: scores that are not float32 or NaN, labels that are neither 0 nor 1, or users
                that are not dense rows.
        """
        checked = check_float32(scores)
        truth = check_labels(labels, len(checked))
        self.rows.append(pack(checked, truth, check_users(users, len(checked))))

    def result(self) -> GroupAuc:
        """Return GAUC over all ranks, the same on each; NaN while no user has both classes.

        All ranks call it. The number of ranks and the order of rows move it by no more than the
        rounding of one float64 sum.
        """
        (counts,) = count_pairs_over_ranks(self.rows)
        return self.joined(gather_objects(self.share(counts)))

    @staticmethod
    def share(counts: Iterable[PairCounts]) -> tuple[Any, ...]:
        """Return what this rank knows once `rows` are counted: sums over the users that fell to it."""
        return tuple(_Sums.total(map(_Sums.of_counts, counts)))

    @staticmethod
    def joined(shares: Iterable[tuple[Any, ...]]) -> GroupAuc:
        """Return GAUC of all ranks' shares; NaN while no user has both classes."""
        return _Sums.total(_Sums(*share) for share in shares).group_auc()


class _Sums(NamedTuple):
    """Sums over users from which every form of GAUC follows; those of parts of the users add up."""

    num_users: int
    """With both classes; the others are not in the sums below."""
    num_one_class: int
    num_rows: int
    weighted: float
    """Σ rows · AUC."""
    plain: float
    """Σ AUC."""

    @staticmethod
    def of(rows: Ints, auc: Floats) -> "_Sums":
        """Return the sums over (U,) rows and AUC of users; NaN marks a user of one class."""
        counted = ~np.isnan(auc)
        rows, auc = rows[counted], auc[counted]
        weighted, plain = float((rows * auc).sum()), float(auc.sum())
        return _Sums(len(auc), len(counted) - len(auc), int(rows.sum()), weighted, plain)

    @staticmethod
    def of_counts(counts: PairCounts) -> "_Sums":
        """Return the sums over users whose pairs were counted."""
        return _Sums.of(counts.negatives + counts.positives, counts.auc)

    @staticmethod
    def total(parts: Iterable["_Sums"]) -> "_Sums":
        """Return the sums over the users of all parts."""
        return reduce(_Sums.plus, parts, _Sums(0, 0, 0, 0.0, 0.0))

    def plus(self, other: "_Sums") -> "_Sums":
        """Return the sums over the users of both."""
        return _Sums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))  # pyright: ignore[reportArgumentType]

    def group_auc(self) -> GroupAuc:
        """Return the means, weighted by rows and plain; NaN without a user of both classes."""
        if not self.num_users:
            return GroupAuc(float("nan"), float("nan"), 0, self.num_one_class, 0)
        mean, user_mean = self.weighted / self.num_rows, self.plain / self.num_users
        return GroupAuc(mean, user_mean, self.num_users, self.num_one_class, self.num_rows)
