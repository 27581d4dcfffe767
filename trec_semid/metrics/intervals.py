"""How sure a metric is, and whether two arms differ: bootstrap over users, and over seeds.

Rows of one user are not independent, so users are drawn, not rows: a replicate draws as many users as
there are, with replacement, and takes each metric over the drawn users' rows. Replicates of runs over
the same users and rows use the same draws, so their differences are paired. Source: Efron and
Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13 (percentile interval).

Seeds: replicates of an arm with k > 1 seeds are the mean over seeds under the same draw of users, plus
s · sqrt(1/k) · t, where s is the standard deviation of the metric between seeds and t a draw from
Student's distribution with k - 1 degrees of freedom: few seeds give a wide interval. In a difference s
is pooled over both arms and the degrees of freedom are k_first + k_second - 2. Seeds of two arms count
as independent. With one seed an interval speaks of other users, not of another training.

Legend: n rows, U users, B replicates.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from trec_semid.core.arrays import Array, Flags, Floats
from trec_semid.core.errors import DataError
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
    sample: str
    """Fingerprint of users, labels (or items) and draws; equal for runs that can be compared pair by pair."""


class Interval(NamedTuple):
    """A metric of one arm, averaged over its seeds, with its 95 % interval."""

    value: float
    low: float
    high: float
    standard_error: float
    num_seeds: int


class Difference(NamedTuple):
    """First arm minus second, each averaged over its seeds, with its 95 % interval."""

    value: float
    low: float
    high: float
    standard_error: float
    p_value: float
    """Two-sided: how often draws fall on the other side of zero."""
    smallest_detectable: float
    """True difference that such a comparison finds with 80 % power at the 5 % level."""

    @property
    def is_distinguishable(self) -> bool:
        """Whether, were it the only comparison, its interval leaves out zero and it could be detected."""
        return (self.low > 0 or self.high < 0) and abs(self.value) >= self.smallest_detectable


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
        scores: (n,) of one run; probabilities where a metric needs them.
        labels: (n,) 0 or 1.
        users: (n,) whose row it is, in the same row order for runs that are to be compared.
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
    return {name: Replicates(float(values[name][0]), np.concatenate(draws[name]), mark) for name in defined}


def interval(seeds: Sequence[Replicates]) -> Interval:
    """Return the mean over an arm's seeds with its 95 % interval.

    Raises:
        DataError: no seeds, or seeds over different users or rows.
    """
    _expect_same_sample(seeds)
    value, drawn, between = _arm_draws(seeds)
    degrees = len(seeds) - 1
    spread = float(np.sqrt(between / max(degrees, 1) / len(seeds)))
    draws = drawn + _seed_draws(spread, degrees, len(drawn))
    low, high = np.nanquantile(draws, (0.025, 0.975))
    error = float(np.hypot(np.nanstd(drawn), spread))
    return Interval(value, float(low), float(high), error, len(seeds))


def difference(first: Sequence[Replicates], second: Sequence[Replicates]) -> Difference:
    """Compare two arms on the same users and rows; each has one or more seeds.

    The p-value is twice the smaller share of draws beyond zero (counting one draw more, so never 0).
    smallest_detectable = (1.96 + 0.84) · standard error where draws are normal; 1.96 and 0.84 are taken
    from the draws themselves, as quantiles of their distance from the mean, since few seeds make wider
    tails than the normal.

    Raises:
        DataError: an arm has no seeds, or runs are over different users or rows.
    """
    _expect_same_sample([*first, *second])
    (value, drawn, between), (other, other_drawn, other_between) = _arm_draws(first), _arm_draws(second)
    degrees = len(first) + len(second) - 2
    variance = (between + other_between) / max(degrees, 1)
    spread = float(np.sqrt(variance * (1 / len(first) + 1 / len(second))))
    return difference_of_draws(value - other, drawn - other_drawn, spread, degrees)


def difference_of_draws(value: float, paired: Floats, spread: float, degrees: int) -> Difference:
    """Return what draws of users, and the variation between seeds, say of a difference.

    Args:
        value: the difference.
        paired: (B,) the difference under each draw of users.
        spread: standard error that seeds add.
        degrees: degrees of freedom of that; 0 adds nothing.
    """
    draws = paired + _seed_draws(spread, degrees, len(paired))
    draws = draws[~np.isnan(draws)]
    low, high = np.quantile(draws, (0.025, 0.975))
    beyond = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    return Difference(
        value=value,
        low=float(low),
        high=float(high),
        standard_error=float(np.hypot(np.nanstd(paired), spread)),
        p_value=min(1.0, 2 * (1 + beyond) / (len(draws) + 1)),
        smallest_detectable=float(np.quantile(np.abs(draws - draws.mean()), (0.95, 0.6)).sum()),
    )


def draw_users(num_users: int, num_replicates: int, seed: int) -> Iterator[Floats]:
    """Yield (b, U) how often each user is drawn, b replicates at a time."""
    generator = numpy_generator(seed, "bootstrap over users")
    at_once = max(1, _CELLS // num_users)
    for start in range(0, num_replicates, at_once):
        size = min(at_once, num_replicates - start)
        drawn = generator.integers(0, num_users, (size, num_users))
        drawn += num_users * np.arange(size)[:, None]  # one count for all replicates at once
        times = np.bincount(drawn.reshape(-1), minlength=size * num_users)
        yield times.reshape(size, num_users).astype(np.float64)


def fingerprint(users: Array, facts: Array, num_replicates: int, seed: int) -> str:
    """Return a mark that is equal for runs over the same rows and draws: (n,) users, and one fact a row."""
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
        self._below = np.searchsorted(negative_scores, ordered[truth], "left")
        self._not_above = np.searchsorted(negative_scores, ordered[truth], "right")

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
        negatives = np.concatenate(([0.0], np.cumsum(weights[self._negative_users])))
        positives = weights[self._positive_users]
        pairs = positives.sum() * negatives[-1]
        # Whole numbers below 2^53 in float64: exact up to the division.
        credit = positives @ (negatives[self._below] + negatives[self._not_above])
        return float(credit / (2 * pairs)) if pairs else float("nan")


def _seed_draws(spread: float, degrees: int, num_replicates: int) -> Floats | float:
    if not degrees or not spread:
        return 0.0
    generator = numpy_generator(0, "variation between seeds", degrees)
    return spread * generator.standard_t(degrees, num_replicates)


def _arm_draws(seeds: Sequence[Replicates]) -> tuple[float, Floats, float]:
    """Return an arm's mean, its mean under each draw of users, and the squared deviations of its seeds."""
    values = np.array([each.value for each in seeds])
    drawn = np.mean([each.draws for each in seeds], axis=0)
    return float(values.mean()), drawn, float(((values - values.mean()) ** 2).sum())


def _expect_same_sample(runs: Sequence[Replicates]) -> None:
    if not runs:
        raise DataError("an arm has no runs", remedy="Give at least one run of each arm")
    if len({run.sample for run in runs}) > 1:
        remedy = "Compare runs on the same dataset, split and protocol, with rows in the same order"
        raise DataError("runs are over different users or rows and cannot be paired", remedy=remedy)
