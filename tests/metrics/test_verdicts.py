import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.metrics.intervals import Difference
from trec_semid.metrics.verdicts import fewest_draws, holm, judge

SHARES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.01, 0.025, 0.05, 0.5, 1.0, math.nan]))


def closed_testing(p_values: list[float]) -> list[float]:
    """Oracle: the closure principle over Bonferroni's test of every subset, without any sorting.

    A difference is told apart at a level if every set of hypotheses with it in is refused there, and a set
    of s is where its least p is at most level / s.
    """
    of = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    sets = [chosen for size in range(1, len(of) + 1) for chosen in itertools.combinations(of, size)]
    return [
        max(
            min(1.0, len(chosen) * min(p_values[each] for each in chosen))
            for chosen in sets
            if index in chosen
        )
        if index in of
        else math.nan
        for index in range(len(p_values))
    ]


@given(st.lists(SHARES, max_size=7))
def test_holm_is_closed_testing_by_bonferroni(p_values: list[float]):
    found = holm(dict(enumerate(p_values)))
    assert list(found) == list(range(len(p_values)))
    assert list(found.values()) == pytest.approx(closed_testing(p_values), nan_ok=True)


@given(st.lists(SHARES, max_size=7), st.randoms())
def test_holm_does_not_depend_on_the_order(p_values: list[float], order):
    named = list(enumerate(p_values))
    order.shuffle(named)
    assert holm(dict(named)) == pytest.approx(holm(dict(enumerate(p_values))), nan_ok=True)


def test_holm_of_the_textbook():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(p) == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {}


def difference(p: float, *, value: float = 0.1, low: float = 0.05, smallest: float = 0.07) -> Difference:
    ends = (low, 2 * value - low) if value > 0 else (2 * value + low, -low)
    return Difference(value, *ends, 0.02, p, smallest)


def test_a_verdict_needs_a_corrected_p_below_the_level():
    """Six p-values of .04 say nothing together: the least is .24 once corrected."""
    alone = judge({"a": difference(0.04)})
    assert alone["a"] == (0.04, "higher")
    told = judge({name: difference(0.04) for name in "abcdef"})
    assert {each.p_holm for each in told.values()} == {0.24}
    assert {each.direction for each in told.values()} == {"not distinguishable"}
    mixed = judge({"a": difference(0.001, value=-0.1), **{name: difference(0.04) for name in "bcdef"}})
    assert mixed["a"].direction == "lower"
    assert mixed["b"].direction == "not distinguishable"
    small = judge({"a": difference(0.001, smallest=0.2), "b": difference(0.001, low=-0.01)})
    assert {each.direction for each in small.values()} == {"not distinguishable"}


@given(st.lists(SHARES, min_size=1, max_size=7))
def test_verdicts_follow_holm_and_nothing_is_told_apart_from_a_p_that_is_not_defined(p_values: list[float]):
    told = judge({index: difference(p) for index, p in enumerate(p_values)})
    for index, corrected in enumerate(closed_testing(p_values)):
        assert (told[index].direction == "higher") == (corrected < 0.05)


@pytest.mark.parametrize("number", [1, 2, 3, 7, 14, 40, 56, 200])
def test_with_the_fewest_draws_one_of_many_can_just_be_told_apart(number: int):
    draws = fewest_draws(number)
    assert number * 2 / (draws + 1) < 0.05 <= number * 2 / draws
