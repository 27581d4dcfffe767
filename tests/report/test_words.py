import pytest

from trec_semid.report.words import (
    corrected_p_value,
    duration,
    figure,
    interval,
    listing,
    p_value,
    share,
    signed,
    things,
)


def test_numbers_are_worded_for_readers():
    assert figure(0.72345) == "0.7235"
    assert figure(None) == "–"
    assert figure(-0.5, 1) == "−0.5"
    assert (signed(0.01), signed(-0.01)) == ("+0.0100", "−0.0100")
    assert interval(0.1, 0.2) == "0.1000 to 0.2000"
    assert interval(-0.1, 0.2, with_sign=True) == "−0.1000 to +0.2000"
    assert interval(None, 0.2) == "–"
    assert (share(1, 4), share(1, 0)) == ("25.0 %", "–")


def test_a_p_value_at_the_end_of_what_draws_can_tell_is_a_bound():
    assert p_value(2 / 1001, 1000) == "≤ 0.002"
    assert p_value(4 / 1001, 1000) == "0.004"
    assert p_value(0.5, 1000) == "0.500"
    assert p_value(2 / 100_001, 100_000) == "≤ 0.001"
    assert corrected_p_value(8 / 1001, 2 / 1001, 1000) == "≤ 0.008"
    assert corrected_p_value(4 / 100_001, 2 / 100_001, 100_000) == "≤ 0.001"
    assert corrected_p_value(0.06, 0.03, 1000) == "0.060"
    assert corrected_p_value(1.0, 2 / 1001, 1000) == "1.000"


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.26, "1.3 s"), (119, "119.0 s"), (150, "2 min 30 s"), (7260, "2 h 01 min")]
)
def test_wall_times_have_fitting_units(seconds: float, text: str):
    assert duration(seconds) == text


def test_names_are_listed_as_in_a_sentence():
    assert listing([]) == ""
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert (things(1, "run"), things(1200, "run")) == ("1 run", "1,200 runs")
