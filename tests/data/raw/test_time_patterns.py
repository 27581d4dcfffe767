import datetime as dt

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trec_semid.data.raw.time_patterns import check_pattern, parse_times

PATTERNS = [
    "%Y-%m-%d",
    "%Y%m%d",
    "%d.%m.%Y",
    "%m/%d/%y",
    "%d %b %Y",
    "%A, %d %B %Y",
    "%a %d-%b-%y %H:%M",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%d %H:%M:%S.%f",
    "%Y-%m-%d %H:%M:%S,%f",
    "%Y%m%d%H%M%S%f",
    "%Y-%m-%dT%H:%M:%S%z",
    "%Y-%m-%dT%H:%M:%S.%f%z",
    "%d/%b/%Y:%H:%M:%S %z",
    "%Y-%m-%d %H:%M:%S %Z",
    "%m/%d/%Y %I:%M:%S %p",
    "%I:%M%p %d.%m.%y",
    "%Y %j",
    "%Y-%j %H",
    "%Y-%m",
    "%Y",
    "100%% %Y-%m-%d",
    "[%Y]({%m})*%d+?",
]
ZONES = st.timedeltas(dt.timedelta(hours=-23, minutes=-59), dt.timedelta(hours=23, minutes=59)).map(
    lambda delta: dt.timezone(dt.timedelta(seconds=int(delta.total_seconds())))
)
MOMENTS = st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2068, 12, 31), timezones=ZONES)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def of_python(text, pattern):
    """Nanoseconds since 1970 by Python's own parser; None where it refuses."""
    try:
        read = dt.datetime.strptime(text, pattern)
    except ValueError:
        return None
    since = (read if read.tzinfo else read.replace(tzinfo=dt.UTC)) - EPOCH
    return (since // dt.timedelta(microseconds=1)) * 1000


def ours(text, pattern):
    check_pattern(pattern)
    parsed = parse_times(pl.Series([text]), pattern)
    if not parsed.fits[0]:
        return None
    return int(parsed.seconds[0]) * 10**9 + int(parsed.nanoseconds[0])


@given(st.sampled_from(PATTERNS), MOMENTS)
@example("%Y-%m-%d %H:%M:%S.%f", dt.datetime(2020, 2, 29, 23, 59, 59, 50000, tzinfo=dt.UTC))
def test_what_python_writes_is_read_as_python_reads_it(pattern, moment):
    text = (moment.astimezone(dt.UTC) if "%Z" in pattern else moment).strftime(pattern)
    expected = of_python(text, pattern)
    assert expected is not None
    assert ours(text, pattern) == expected


@given(st.sampled_from(PATTERNS), MOMENTS, st.data())
def test_texts_close_to_a_pattern_are_read_or_refused_as_by_python(pattern, moment, data):
    text = moment.strftime(pattern)
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.text("0129: -+.Zz/aPm", max_size=2)) + text[at + 1 :]
    if "%Z" in pattern and not text.lower().endswith(("utc", "gmt")):
        return  # Python also knows the machine's own zone
    expected, got = of_python(text, pattern), ours(text, pattern)
    if expected is None and got is not None:
        assert "%f" in pattern  # more than six digits, which Python does not read
        return
    assert got == expected


@pytest.mark.parametrize(
    ("text", "pattern", "expected"),
    [
        ("2022 1234560745", "%Y %f%H%M", "2022-01-01T07:45:00.123456"),
        ("2020-01-01 00:00:01.5", "%Y-%m-%d %H:%M:%S.%f", "2020-01-01T00:00:01.500"),
        ("2020-01-01 00:00:01.05", "%Y-%m-%d %H:%M:%S.%f", "2020-01-01T00:00:01.050"),
        ("2020-01-01 00:00:01.123456789", "%Y-%m-%d %H:%M:%S.%f", "2020-01-01T00:00:01.123456789"),
        ("01/31/20 11:22:33", "%D %T", "2020-01-31T11:22:33"),
        ("2020-01-31 11:22", "%F %R", "2020-01-31T11:22"),
        ("31 jan 2020 12:00 AM", "%d %h %Y %I:%M %p", "2020-01-31T00:00"),
        ("2020-01-31 12:00:00+0530", "%Y-%m-%d %H:%M:%S%z", "2020-01-31T06:30"),
    ],
)
def test_known_texts(text, pattern, expected):
    import numpy as np

    assert ours(text, pattern) == int(np.datetime64(expected, "ns").astype(np.int64))


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("2023-02-29", "%Y-%m-%d"),
        ("2023 366", "%Y %j"),
        ("0000-01-01", "%Y-%m-%d"),
        ("2023-01-01 23:59:60", "%Y-%m-%d %H:%M:%S"),
        ("2023-01-01 CET", "%Y-%m-%d %Z"),
        ("2023-01-01 +24:00", "%Y-%m-%d %z"),
        ("2023-01-01x", "%Y-%m-%d"),
        (None, "%Y-%m-%d"),
    ],
)
def test_what_is_no_time_does_not_fit(text, pattern):
    assert not parse_times(pl.Series([text], dtype=pl.String), pattern).fits[0]


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("%Y-%m-%d %H:%M:%S%.f", r"'%\.'.*write '\.%f'"),
        ("%Y-%m-%d %3f", r"'%3'.*write '\.%f'"),
        ("%s", "'%s'"),
        ("%c", "'%c'"),
        ("%Y-W%W-%w", "'%W'"),
        ("%Y-%m-%d %", "single '%'"),
        ("%Y-%Y", "'%Y' occurs twice"),
        ("%F %Y", "'%Y' occurs twice.*%F is %Y-%m-%d"),
        ("%Y %y", "say the same thing twice"),
        ("%H:%M", "no year"),
        ("yyyy-mm-dd", "no year"),
        ("%Y %d", "no month"),
    ],
)
def test_patterns_that_python_does_not_know_or_that_say_too_little_are_refused(pattern, problem):
    with pytest.raises(ValueError, match=problem):
        check_pattern(pattern)
