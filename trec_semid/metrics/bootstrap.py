"""Metrics of one run under resampled users: the bootstrap over users.

Rows of one user are not independent, so users are drawn, not rows: a replicate draws as many users as
there are, with replacement, and takes each metric over the drawn users' rows, or the mean of the drawn
users' values. Runs over the same users and rows (or targets) with the same `seed` have the same draws, so
their differences are paired: see `intervals`. Source: Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 6.

Legend: N rows, U users, T targets of all users, B replicates, b of them at a time, M metrics.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from trec_semid.core.arrays import Array, Flags, Floats
from trec_semid.core.errors import ShapeError
from trec_semid.core.seeds import numpy_generator
from trec_semid.metrics.binary import ProbabilitySums, check_probabilities, row_losses
from trec_semid.metrics.gauc import per_user_auc
from trec_semid.metrics.keys import check_labels, check_scores

USER_METRICS = ("auc", "gauc", "gauc_user_mean", "log_loss", "normalised_entropy", "calibration")
_OF_PROBABILITIES = frozenset(USER_METRICS[3:])
_CELLS = 1 << 21
"""Weights (replicates × users) held at a time."""


class Replicates(NamedTuple):
    """One metric of one run: its value and its values under resampled users."""

    value: float
    draws: Floats
    """(B,) NaN where a draw of users does not define the metric."""
    num_users: int
    """Users who count: those with both classes for GAUC, those with a target of the stratum for a list."""
    sample: str
    """Fingerprint of users, labels (or items) and draws; equal for runs that can be compared pair by pair."""


def bootstrap(
    scores: ArrayLike,
    labels: ArrayLike,
    users: ArrayLike,
    *,
    metrics: Sequence[str] = USER_METRICS,
    num_replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Replicates]:
    """Take each metric over all rows and under `num_replicates` draws of users.

    GAUC, log loss, normalised entropy and calibration come from sums per user, in O(U) a replicate;
    AUC from rows sorted once, exactly, in O(n) a replicate. Memory: O(n), whatever `num_replicates`.

    Args:
        scores: (N,) of one run; probabilities where a metric needs them.
        labels: (N,) 0 or 1.
        users: (N,) whose row it is, in the same row order for runs that are to be compared.
        metrics: which of USER_METRICS; those that the rows do not define are left out of the result. Rows
            of fewer than two users define none: there is nothing to draw from.
        num_replicates: B.
        seed: of the draws; equal for runs that are to be compared.

    Raises:
        ShapeError: the lengths differ.
        DataError: NaN scores, labels that are neither 0 nor 1, or scores outside [0, 1] for a metric of
            probabilities.
    """
    checked, truth = check_scores(scores), check_labels(labels, np.size(labels))
    if _OF_PROBABILITIES.intersection(metrics):
        check_probabilities(checked, truth)
    sample = _Sample(checked, truth, np.asarray(users))
    if sample.num_users < 2:
        return {}
    values = sample.under(np.ones((1, sample.num_users)), metrics)
    defined = [name for name in metrics if not np.isnan(values[name][0])]
    draws: dict[str, list[Floats]] = {name: [] for name in defined}
    for weights in draw_users(sample.num_users, num_replicates, seed):
        for name, drawn in sample.under(weights, defined).items():
            draws[name].append(drawn)
    mark = fingerprint(np.asarray(users), truth, num_replicates, seed)
    return {
        name: Replicates(
            float(values[name][0]), np.concatenate(draws[name]), sample.num_counted_users(name), mark
        )
        for name in defined
    }


def bootstrap_user_means(
    values: Mapping[str, ArrayLike],
    users: ArrayLike,
    items: ArrayLike,
    *,
    num_replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Replicates]:
    """Take the mean of each metric over all users and under `num_replicates` draws of them.

    A user without a value (NaN) counts neither above nor below the line.

    Args:
        values: (U,) of each metric, such as recall@10; NaN for a user whom it does not define.
        users: (T,) and
        items: (T,) the rows that the values come from, such as every user's targets; with U, B and
            `seed` they tell which runs can be compared.
        num_replicates: B.
        seed: of the draws; equal for runs that are to be compared.

    Returns:
        One entry a metric; a metric that no user defines is left out, and all where there are fewer than
        two users: there is nothing to draw from.

    Raises:
        ShapeError: metrics over different numbers of users.
    """
    given = {name: np.asarray(column, np.float64) for name, column in values.items()}
    defined = {name: column for name, column in given.items() if not np.isnan(column).all()}
    sizes = {column.shape for column in given.values()}
    if len(sizes) > 1:
        raise ShapeError(f"values: metrics over different users (got shapes {sorted(sizes)}).")
    if not defined or len(next(iter(defined.values()))) < 2:
        return {}
    table = np.stack(list(defined.values()), axis=1)
    counted = ~np.isnan(table)
    # Side by side, so that one matrix product gives sums and numbers of users.
    both = np.concatenate((np.where(counted, table, 0.0), counted), axis=1)

    def means(weights: Floats) -> Floats:
        """Return (b, M) means when user u counts weights[:, u] times; NaN where no drawn user has a value."""
        sums, numbers = np.split(weights @ both, 2, axis=1)
        with np.errstate(invalid="ignore"):
            return sums / numbers

    value = means(np.ones((1, len(table))))[0]
    draws = np.concatenate([means(weights) for weights in draw_users(len(table), num_replicates, seed)])
    mark = fingerprint(np.asarray(users), np.asarray(items), num_replicates, seed)
    num_users = counted.sum(axis=0)
    return {
        name: Replicates(float(value[at]), draws[:, at], int(num_users[at]), mark)
        for at, name in enumerate(defined)
    }


def draw_users(num_users: int, num_replicates: int, seed: int) -> Iterator[Floats]:
    """Yield (B, U) in pieces of fewer rows: how often each user is drawn in each replicate."""
    generator = numpy_generator(seed, "bootstrap over users")
    at_once = max(1, _CELLS // num_users)
    for start in range(0, num_replicates, at_once):
        size = min(at_once, num_replicates - start)
        drawn = generator.integers(0, num_users, (size, num_users))
        drawn += num_users * np.arange(size)[:, None]  # one count for all replicates at once
        times = np.bincount(drawn.reshape(-1), minlength=size * num_users)
        yield times.reshape(size, num_users).astype(np.float64)


def fingerprint(users: Array, facts: Array, num_replicates: int, seed: int) -> str:
    """Return a mark that is equal for runs over the same rows and draws: (N,) users, and one fact a row."""
    digest = hashlib.sha256(f"{num_replicates} {seed} {users.dtype}".encode())
    digest.update(users.tobytes())
    digest.update(facts.tobytes())
    return digest.hexdigest()


class _Sample:
    """What resampling users needs of the rows: sums per user, and rows by score for AUC."""

    def __init__(self, scores: Array, labels: Flags, users: Array) -> None:
        each = per_user_auc(scores, labels, users)
        self.num_users = len(each.users)
        counted = ~np.isnan(each.auc)
        self._num_of_both_classes = int(counted.sum())
        weight = np.where(counted, each.rows, 0)
        area = np.where(counted, each.auc, 0.0)
        member = np.searchsorted(each.users, users)
        loss = np.bincount(member, row_losses(scores, labels), self.num_users)
        predicted = np.bincount(member, scores, self.num_users)
        columns = (weight * area, weight, area, counted, each.rows, each.positives, loss, predicted)
        self._sums = np.stack(columns, axis=1).astype(np.float64)
        order = np.argsort(scores, kind="stable")
        ordered, truth = scores[order], labels[order]
        self._negative_users, self._positive_users = member[order[~truth]], member[order[truth]]
        negative_scores = ordered[~truth]
        # Of each positive, negatives below it and negatives not above it: their mean counts ties one half.
        self._below = np.searchsorted(negative_scores, ordered[truth], "left")
        self._not_above = np.searchsorted(negative_scores, ordered[truth], "right")

    def num_counted_users(self, metric: str) -> int:
        """Return how many users count in the metric."""
        return self._num_of_both_classes if metric.startswith("gauc") else self.num_users

    def under(self, weights: Floats, metrics: Sequence[str]) -> dict[str, Floats]:
        """Return each metric (b,) when user u counts weights[:, u] times; weights are (b, U)."""
        sums = (weights @ self._sums).T
        probability = ProbabilitySums(sums[4], sums[5], sums[6], sums[7])
        with np.errstate(divide="ignore", invalid="ignore"):
            ways = {
                "auc": lambda: np.array([self._auc(each) for each in weights]),
                "gauc": lambda: sums[0] / sums[1],
                "gauc_user_mean": lambda: sums[2] / sums[3],
                "log_loss": probability.log_loss,
                "normalised_entropy": probability.normalised_entropy,
                "calibration": probability.calibration,
            }
            return {name: ways[name]() for name in metrics}

    def _auc(self, weights: Floats) -> float:
        # Weight of the n lowest negatives, so that what lies below a positive is one look-up.
        negatives = np.concatenate(([0.0], np.cumsum(weights[self._negative_users])))
        positives = weights[self._positive_users]
        pairs = positives.sum() * negatives[-1]
        # Whole numbers below 2^53 in float64: exact up to the division.
        credit = positives @ (negatives[self._below] + negatives[self._not_above])
        return float(credit / (2 * pairs)) if pairs else float("nan")
