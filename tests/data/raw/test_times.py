import datetime as dt
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.core.errors import DataError
from trec_semid.data.raw.columns import Where
from trec_semid.data.raw.times import PER_SECOND, UNITS, Times, as_times, join_times, text_of

WHERE = Where([(0, "a.csv", 1, None), (2, "b.csv", 11, None)], "x")
NOW = 1_700_000_000.0
T0 = 881_250_949
UNIT = st.sampled_from(UNITS)
SECONDS = st.integers(T0, int(NOW))


def column(values, kind=None):
    return pa.chunked_array([pa.array(values, kind)])


def read(values, unit="s", kind=None, **more):
    return as_times(column(values, kind), WHERE, unit, now_s=NOW, **more)


def seconds(times: Times) -> list[Fraction]:
    return [Fraction(int(value), PER_SECOND[times.unit]) for value in times.values]


def coarsest(exact: list[Fraction]) -> str:
    return next(unit for unit in UNITS if all((each * PER_SECOND[unit]).denominator == 1 for each in exact))


@given(UNIT, st.lists(st.tuples(SECONDS, st.integers(0, 10**9 - 1)), min_size=1, max_size=8))
def test_whole_numbers_of_any_unit_are_exact_and_in_the_coarsest_unit(unit, moments):
    per = PER_SECOND[unit]
    stated = [second * per + nano * per // 10**9 for second, nano in moments]
    exact = [Fraction(value, per) for value in stated]
    for values in (stated, [f" {value}" for value in stated], pa.array(stated, pa.decimal128(38, 4))):
        times = read(values, unit)
        assert seconds(times) == exact
        assert times.unit == coarsest(exact)


@given(UNIT, st.data())
def test_text_with_fractions_is_exact_to_the_nanosecond(unit, data):
    width = 9 - 3 * UNITS.index(unit)
    digits = st.text("0123456789", max_size=width)
    parts = data.draw(st.lists(st.tuples(SECONDS, digits, st.sampled_from(["", "0", "e0"])), min_size=1))
    texts = [
        f"{second * PER_SECOND[unit]}.{part}{more if part or more != 'e0' else ''}"
        for second, part, more in parts
    ]
    exact = [Fraction(text) / PER_SECOND[unit] for text in texts]
    times = read(texts, unit)
    assert seconds(times) == exact
    assert times.unit == coarsest(exact)


@given(
    st.integers(0, 7).flatmap(
        lambda digits: st.lists(st.floats(T0, NOW).map(lambda value: round(value, digits)), min_size=1)
    )
)
def test_floats_are_the_shortest_decimals_that_read_as_them(values):
    times = read(values)
    assert seconds(times) == [Fraction(Decimal(repr(value))) for value in values]
    assert np.array_equal(np.argsort(times.values, kind="stable"), np.argsort(values, kind="stable"))


def test_missing_floats_are_refused_however_many_digits_others_have():
    for fraction in (0.0, 0.5, 0.123456, 0.1234567):
        with pytest.raises(DataError, match=r"row 2.*the time is missing"):
            read([T0 + fraction, None])


@given(
    UNIT,
    st.lists(st.tuples(SECONDS, st.integers(0, 10**9 - 1)), min_size=1),
    st.sampled_from([None, "UTC", "+05:30"]),
)
def test_arrow_timestamps_are_exact_whatever_their_unit_and_zone(unit, moments, zone):
    per = PER_SECOND[unit]
    stated = [second * per + nano * per // 10**9 for second, nano in moments]
    times = read(pa.array(stated, pa.timestamp(unit, zone)), "s")
    assert seconds(times) == [Fraction(value, per) for value in stated]


def test_arrow_dates_are_midnights():
    day = dt.datetime(2014, 7, 23, tzinfo=dt.UTC)
    for values, kind in (([day.date()], pa.date32()), ([day.date()], pa.date64()), ([day], None)):
        times = read(values, kind=kind)
        assert (times.unit, times.values.tolist()) == ("s", [int(day.timestamp())])


@given(st.lists(st.tuples(UNIT, st.lists(SECONDS, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_pieces_are_joined_in_the_finest_of_their_units(pieces):
    times = [Times(np.array([each * PER_SECOND[unit] for each in of]), unit) for unit, of in pieces]
    joined = join_times(times)
    assert joined.unit == max((unit for unit, _ in pieces), key=UNITS.index)
    assert seconds(joined) == [Fraction(each) for _, of in pieces for each in of]


def test_pieces_that_no_unit_holds_are_refused():
    far = Times(np.array([10**11]), "s")
    with pytest.raises(OverflowError):
        join_times([far, Times(np.array([1]), "ns")])


def test_patterns_reach_nanoseconds_and_whole_numbers():
    assert read(["2014-07-23"], pattern="%Y-%m-%d") == Times(np.array([1406073600]), "s")
    assert read([20140723], pattern="%Y%m%d") == Times(np.array([1406073600]), "s")
    times = read(["2014-07-23 00:00:01.5", "2014-07-23 00:00:01.25"], pattern="%Y-%m-%d %H:%M:%S.%f")
    assert (times.unit, times.values.tolist()) == ("ms", [1406073601500, 1406073601250])
    with pytest.raises(DataError, match=r"row 2.*does not match '%Y-%m-%d' \(got '23.7.2014'\)"):
        read(["2014-07-23", "23.7.2014"], pattern="%Y-%m-%d")
    with pytest.raises(DataError, match=r"row 2.*the time is missing"):
        read(["2014-07-23", ""], pattern="%Y-%m-%d")


REFUSED = {
    "zero": ([T0, 0], "s", r"row 2.*time before 1990-01-01, read in 's' \(got 0\).*nobody knows"),
    "negative": ([T0, -1], "s", r"row 2.*negative time.*\(got -1\)"),
    "missing": ([T0, None], "s", "row 2.*the time is missing.*order column"),
    "empty": ([str(T0), ""], "s", "row 2.*the time is missing"),
    "nan": ([1.0 * T0, float("nan")], "s", "row 2.*the time is missing"),
    "nan text": ([str(T0), "NaN"], "s", "row 2.*the time is missing"),
    "word": ([str(T0), "yesterday"], "s", "row 2.*not a time as a number.*'yesterday'.*set timestamp_format"),
    "iso day": ([str(T0), "2014-07-23"], "s", 'Set timestamp_format = "%Y-%m-%d"'),
    "iso": (["2014-07-23T10:11:12Z"], "s", 'Set timestamp_format = "%Y-%m-%dT%H:%M:%S%z"'),
    "iso ms": (["2014-07-23 10:11:12.5"], "s", 'Set timestamp_format = "%Y-%m-%d %H:%M:%S.%f"'),
    "future": ([T0, int(NOW) + 200_000], "s", r"row 2.*time in the future, read in 's' .*timestamp_range"),
    "ms as s": (
        [T0, T0 * 1000],
        "s",
        r"row 2.*future, read in 's'.*In 'ms' it is 1997-12-04: set timestamp_unit = \"ms\"",
    ),
    "ns as s": ([T0, T0 * 10**9], "s", "In 'ns' it is 1997-12-04"),
    "s as ms": ([T0 * 1000, T0], "ms", r"row 2.*before 1990-01-01, read in 'ms'.*In 's' it is 1997-12-04"),
    "s as ns": ([T0], "ns", "In 's' it is 1997-12-04"),
    "us as ns": ([T0 * 10**6], "ns", "In 'us' it is 1997-12-04"),
    "day number": ([20140723], "s", 'the day 2014-07-23: set timestamp_format = "%Y%m%d"'),
    "day number as ms": (["20140723"], "ms", 'set timestamp_format = "%Y%m%d"'),
    "clock number": ([20140723101112], "s", 'set timestamp_format = "%Y%m%d%H%M%S"'),
    "too fine": ([f"{T0}.0000000001"], "s", "finer than a nanosecond"),
    "infinite": ([1.0 * T0, float("inf")], "s", "row 2.*time in the future"),
    "infinite text": ([str(T0), "1e999"], "s", "row 2.*time in the future"),
    "beyond 64 bits": ([str(T0), str(2**70)], "s", "row 2.*time in the future"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_times_that_no_log_has_are_refused_with_what_they_may_be(case):
    values, unit, problem = REFUSED[case]
    with pytest.raises(DataError, match=problem):
        read(values, unit)


def test_other_columns_are_refused():
    with pytest.raises(DataError, match=r"time in the future"):
        read([2**64 - 1], kind=pa.uint64())
    for values in ([True], [dt.time(10)], [dt.timedelta(1)], [[1]]):
        with pytest.raises(DataError, match="wrong type"):
            read(values)
    with pytest.raises(DataError, match="time before 1990-01-01 "):
        read([dt.date(1989, 12, 31)])


def test_the_config_can_widen_or_narrow_the_days():
    old = (dt.date(1950, 1, 1), dt.date(1980, 12, 31))
    times = read(["0", "-0.25", "-1"], days=old)
    assert (times.unit, times.values.tolist()) == ("ms", [0, -250, -1000])
    last = int(dt.datetime(1981, 1, 1, tzinfo=dt.UTC).timestamp())
    assert read([last - 1], days=old).values.tolist() == [last - 1]
    for values in ([last], [T0]):
        with pytest.raises(DataError, match=r"time after 1980-12-31, read in 's'.*widen timestamp_range"):
            read(values, days=old)
    with pytest.raises(DataError, match=r"time before 1950-01-01"):
        read(["-1e10"], days=old)
    # What 64 bits of nanoseconds do not hold is refused, however wide the days are.
    wide = (dt.date(1, 1, 1), dt.date(9999, 12, 31))
    assert read(["253402300799"], days=wide).values.tolist() == [253402300799]
    with pytest.raises(DataError, match="time after"):
        read(["253402300799", f"{T0}.123456789"], days=wide)


@given(UNIT, st.integers(-(10**9), 2 * 10**9), st.integers(0, 10**9 - 1))
def test_a_time_is_written_with_the_digits_of_its_unit(unit, second, nano):
    value = second * PER_SECOND[unit] + nano * PER_SECOND[unit] // 10**9
    text = text_of(value, unit)
    whole, _, digits = text.removesuffix("Z").partition(".")
    parsed = dt.datetime.fromisoformat(whole).replace(tzinfo=dt.UTC)
    assert int(parsed.timestamp()) * PER_SECOND[unit] + int(digits or 0) == value
    assert len(digits) == 3 * UNITS.index(unit)
