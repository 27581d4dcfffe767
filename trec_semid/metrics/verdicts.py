"""Which of several differences that are shown together are told apart from zero.

Among m comparisons of equal arms some p-value lies below 5 % far more often than once in 20. Holm's
correction bounds the probability of any false verdict among them by the level, however they depend on each
other:

    p_holm(i) = max over j ≤ i of min(1, (m − j + 1) · p(j)),   p(1) ≤ … ≤ p(m)

Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.

Legend: m comparisons, B draws of users.
"""

import math
from collections.abc import Hashable, Mapping
from typing import Literal, NamedTuple, TypeVar

from trec_semid.metrics.intervals import Difference

LEVEL = 0.05
NOT_DISTINGUISHABLE = "not distinguishable"
Direction = Literal["higher", "lower", "not distinguishable"]
Name = TypeVar("Name", bound=Hashable)


class Verdict(NamedTuple):
    """What a difference is called beside the others that are shown with it."""

    p_holm: float
    """Corrected for the number of comparisons; NaN where the p-value is."""
    direction: Direction


def judge(differences: Mapping[Name, Difference]) -> dict[Name, Verdict]:
    """Return the verdict on each of the differences that are shown together.

    A difference is higher or lower only if its corrected p-value is below 5 %, its 95 % interval leaves out
    zero, and it is at least the smallest detectable one.
    """
    corrected = holm({name: each.p_value for name, each in differences.items()})
    return {
        name: Verdict(corrected[name], _direction(each, corrected[name]))
        for name, each in differences.items()
    }


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Return corrected p-values; NaN stays NaN and does not count as a comparison."""
    defined = {name: p for name, p in p_values.items() if not math.isnan(p)}
    corrected = dict.fromkeys(p_values, math.nan)
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(defined.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(defined) - rank) * p))
        corrected[name] = largest
    return corrected


def fewest_draws(num_comparisons: int) -> int:
    """Return the least B with which one of m comparisons can be told apart: 2 m / (B + 1) is below 5 %."""
    return math.ceil(2 * num_comparisons / LEVEL)


def _direction(difference: Difference, p_holm: float) -> Direction:
    if not difference.is_distinguishable or not p_holm < LEVEL:
        return NOT_DISTINGUISHABLE
    return "higher" if difference.value > 0 else "lower"
