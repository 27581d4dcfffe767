"""How sure a metric of an arm is, and whether two arms differ: percentile intervals over users and seeds.

Replicates of runs over the same users use the same draws (`bootstrap`), so their differences are paired.
Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile interval).

What varies over k > 1 seeds is added to each draw of users as s · sqrt(1/k) · t, where s is a standard
deviation between seeds and t a draw from Student's distribution: few seeds give a wide interval.

    interval(arm)                  s of the metric, k - 1 degrees of freedom
    difference_of_paired_seeds     d_s = first_s - second_s seed by seed; s of d, k - 1 degrees. Runs of one
                                   seed share what the seed decides (initial tables, order of batches, drawn
                                   negatives), so what varies over seeds is d, not each arm
    difference_of_other_seeds      arms whose seeds are not the same, and count as independent: s pooled
                                   over both, k_first + k_second - 2 degrees
    paired_t_test                  values alone, without users: mean d / (s / sqrt(k)) is Student's t with
                                   k - 1 degrees (Student, "The Probable Error of a Mean", 1908)

With one seed an interval speaks of other users, not of another training.

Legend: B replicates, k seeds.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trec_semid.core.arrays import Floats
from trec_semid.core.errors import DataError
from trec_semid.core.seeds import numpy_generator
from trec_semid.metrics.bootstrap import Replicates

_POWER, _LEVEL = 0.8, 0.05


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


def difference_of_paired_seeds(first: Sequence[Replicates], second: Sequence[Replicates]) -> Difference:
    """Compare two arms over the same users and seeds.

    Args:
        first: one for each seed.
        second: the same seeds, in the same order.

    Raises:
        DataError: no seeds, or runs over different users or rows.
    """
    _expect_same_sample(first, second)
    pairs = list(zip(first, second, strict=True))
    deltas = np.array([one.value - other.value for one, other in pairs])
    drawn = np.mean([one.draws - other.draws for one, other in pairs], axis=0)
    degrees = len(deltas) - 1
    spread = float(deltas.std(ddof=1)) / math.sqrt(len(deltas)) if degrees else 0.0
    return _difference_of_draws(float(deltas.mean()), drawn, spread, degrees)


def difference_of_other_seeds(first: Sequence[Replicates], second: Sequence[Replicates]) -> Difference:
    """Compare two arms on the same users and rows whose seeds are not the same.

    Args:
        first: one for each of its seeds.
        second: one for each of its own.

    Raises:
        DataError: an arm has no seeds, or runs are over different users or rows.
    """
    _expect_same_sample(first, second)
    (value, drawn, between), (other, other_drawn, other_between) = _arm_draws(first), _arm_draws(second)
    degrees = len(first) + len(second) - 2
    # Pooled: both arms are taken to vary alike, so an arm of one seed borrows the other's spread.
    variance = (between + other_between) / max(degrees, 1)
    spread = float(np.sqrt(variance * (1 / len(first) + 1 / len(second))))
    return _difference_of_draws(value - other, drawn - other_drawn, spread, degrees)


def paired_t_test(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two arms by one value a seed.

    Args:
        first: k >= 2 values.
        second: those of the same seeds, in the same order.

    Raises:
        DataError: fewer than two seeds, which say nothing of their spread.
    """
    from scipy.stats import t as student  # takes most of a second, which only this test has to wait for

    deltas = np.array(first, np.float64) - np.array(second, np.float64)
    degrees = len(deltas) - 1
    if degrees < 1:
        raise DataError("a paired test over seeds needs two seeds", remedy="Add seeds to the study")
    mean, error = float(deltas.mean()), float(deltas.std(ddof=1)) / math.sqrt(len(deltas))
    reach = float(student.ppf(1 - _LEVEL / 2, degrees))
    p_value = 2 * float(student.sf(abs(mean) / error, degrees)) if error else float(mean == 0)
    smallest = (reach + float(student.ppf(_POWER, degrees))) * error
    return Difference(mean, mean - reach * error, mean + reach * error, error, p_value, smallest)


def _difference_of_draws(value: float, paired: Floats, spread: float, degrees: int) -> Difference:
    """Return what draws of users, and the variation between seeds, say of a difference.

    The p-value is twice the smaller share of draws beyond zero (counting one draw more, so never 0).
    smallest_detectable = (1.96 + 0.84) · standard error where draws are normal; 1.96 and 0.84 are taken
    from the draws themselves, as quantiles of their distance from the mean, since few seeds make wider
    tails than the normal.

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
        # Of a normal's distances from its mean, 95 % are below 1.96 and 60 % below 0.84 (80 % on one side).
        smallest_detectable=float(np.quantile(np.abs(draws - draws.mean()), (0.95, 0.6)).sum()),
    )


def _seed_draws(spread: float, degrees: int, num_replicates: int) -> Floats | float:
    if not degrees or not spread:
        return 0.0
    # Always the same draws: the same runs give the same interval each time.
    generator = numpy_generator(0, "variation between seeds", degrees)
    return spread * generator.standard_t(degrees, num_replicates)


def _arm_draws(seeds: Sequence[Replicates]) -> tuple[float, Floats, float]:
    """Return an arm's mean, its mean under each draw of users, and the squared deviations of its seeds."""
    values = np.array([each.value for each in seeds])
    drawn = np.mean([each.draws for each in seeds], axis=0)
    return float(values.mean()), drawn, float(((values - values.mean()) ** 2).sum())


def _expect_same_sample(*arms: Sequence[Replicates]) -> None:
    if not all(arms):
        raise DataError("an arm has no runs", remedy="Give at least one run of each arm")
    if len({run.sample for runs in arms for run in runs}) > 1:
        remedy = "Compare runs on the same dataset, split and protocol, with rows in the same order"
        raise DataError("runs are over different users or rows and cannot be paired", remedy=remedy)
