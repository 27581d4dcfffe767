"""Differences of two arms, paired over their seeds, and over users where rows of users are at hand.

Runs of one seed share what the seed decides (initial tables, order of batches, drawn negatives), so arms
are subtracted seed by seed, d_s = first_s - second_s, and what varies over seeds is d, not each arm:

    draws:   mean_s (first_s - second_s) under one draw of users + s_d / √k · t,  t of k - 1 degrees
    values:  mean d / (s_d / √k) is Student's t with k - 1 degrees (Student, "The Probable Error of a
             Mean", 1908), without users

with s_d the standard deviation of d over k seeds. See `intervals` for the draws of users.

Legend: k seeds, B draws.
"""

import math
from collections.abc import Sequence

import numpy as np

from trec_semid.core.errors import DataError
from trec_semid.metrics.intervals import Difference, Replicates, difference_of_draws

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)
_POWER, _LEVEL = 0.8, 0.05


def paired_difference(first: Sequence[Replicates], second: Sequence[Replicates]) -> Difference:
    """Compare two arms over the same users and seeds.

    Args:
        first: one for each seed.
        second: the same seeds, in the same order.

    Raises:
        DataError: no seeds, or runs over different users or rows.
    """
    if not first or len({run.sample for run in [*first, *second]}) != 1:
        remedy = "Compare runs on the same dataset, split and protocol"
        raise DataError("runs are over different users or rows and cannot be paired", remedy=remedy)
    pairs = list(zip(first, second, strict=True))
    deltas = np.array([one.value - other.value for one, other in pairs])
    drawn = np.mean([one.draws - other.draws for one, other in pairs], axis=0)
    degrees = len(deltas) - 1
    spread = float(deltas.std(ddof=1)) / math.sqrt(len(deltas)) if degrees else 0.0
    return difference_of_draws(float(deltas.mean()), drawn, spread, degrees)


def paired_t_test(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two arms by one value a seed.

    Args:
        first: k >= 2 values.
        second: those of the same seeds, in the same order.

    Raises:
        DataError: fewer than two seeds, which say nothing of their spread.
    """
    deltas = np.array(first, np.float64) - np.array(second, np.float64)
    degrees = len(deltas) - 1
    if degrees < 1:
        raise DataError("a paired test over seeds needs two seeds", remedy="Add seeds to the study")
    mean, error = float(deltas.mean()), float(deltas.std(ddof=1)) / math.sqrt(len(deltas))
    reach = student_quantile(1 - _LEVEL / 2, degrees)
    p_value = 2 * student_tail(abs(mean) / error, degrees) if error else float(mean == 0)
    smallest = (reach + student_quantile(_POWER, degrees)) * error
    return Difference(mean, mean - reach * error, mean + reach * error, error, p_value, smallest)


def student_tail(t: float, degrees: int) -> float:
    """Return P(T > t) of Student's distribution, t >= 0.

    With T = √degrees · tan θ its density is cos^(degrees - 1) θ, which Gauss-Legendre integrates.
    """
    start = math.atan(t / math.sqrt(degrees))
    return _cosine_integral(start, degrees) / (2 * _cosine_integral(0.0, degrees))


def student_quantile(share: float, degrees: int) -> float:
    """Return the t that a share >= 1/2 of Student's distribution lies below, by bisection."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, degrees) > 1 - share else (low, middle)
    return (low + high) / 2


def _cosine_integral(start: float, degrees: int) -> float:
    half = (math.pi / 2 - start) / 2
    return half * float(_WEIGHTS @ np.cos(start + half * (1 + _NODES)) ** (degrees - 1))
