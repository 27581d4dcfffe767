"""Points in time, exactly as the source states them: integers, and the coarsest unit that holds them all."""

import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import polars as pl
import pyarrow as pa

from trec_semid.core.arrays import Ints
from trec_semid.data.raw.columns import Where, as_text, series
from trec_semid.data.raw.time_patterns import parse_times

TimeUnit = Literal["s", "ms", "us", "ns"]
UNITS: tuple[TimeUnit, ...] = ("s", "ms", "us", "ns")
PER_SECOND: dict[TimeUnit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
Days = tuple[date, date]
"""First and last day, both included."""
_OLDEST = date(1990, 1, 1)
"""No log of what people do on-line is older; a 0, or seconds read as milliseconds, are."""
_EPOCH = date(1970, 1, 1)
_DAY_S = 86_400
_EARLY_S = 10**8
"""In 1973: an earlier one tells no unit."""
_MOST_STEPS = 2.0**51
_INT64 = np.iinfo(np.int64)
_MISSING = "Fill it in, or map no timestamp and give an order column instead"
_GUESSES = [
    f"{day}{clock}{zone}"
    for day in ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%Y%m%d")
    for clock in ("", " %H:%M:%S", "T%H:%M:%S", " %H:%M:%S.%f", "T%H:%M:%S.%f", " %H:%M", "T%H:%M")
    for zone in ("", "%z", " %z", " %Z")
]
_AS_DIGITS = ("%Y%m%d", "%Y%m%d%H%M%S", "%Y%m%d%H%M")


class Times(NamedTuple):
    """Points in time since 1970, UTC. n of them."""

    values: Ints
    """(n,) in `unit`."""
    unit: TimeUnit


class _Exact(NamedTuple):
    """Numbers as whole units and a decimal fraction of one."""

    whole: pl.Series
    """(n,) Int64, rounded down; null where missing."""
    fraction: Ints
    """(n,) of a unit, in steps of 1 / 10**digits."""
    digits: int
    """0, 3, 6 or 9."""
    unit: TimeUnit


def as_times(
    column: pa.ChunkedArray,
    where: Where,
    unit: TimeUnit,
    *,
    pattern: str | None = None,
    days: Days | None = None,
    now_s: float = 0.0,
) -> Times:
    """Return points in time, none rounded.

    A float stands for the shortest decimal that reads as it, as everywhere where it is printed.

    Args:
        column: integers, decimals, floats or text in `unit`, Arrow dates and timestamps (those without a zone
            are in UTC), or text after `pattern`.
        where: its place.
        unit: unit of numbers.
        pattern: Python's strptime pattern of text, e.g. "%Y-%m-%d %H:%M:%S".
        days: first and last day that times may have; 1990 to tomorrow where not given.
        now_s: what `tomorrow` counts from; 0 is the present.

    Raises:
        DataError: a time is missing, not a time, finer than nanoseconds, or outside these days.
    """
    is_temporal = pa.types.is_temporal(column.type)
    values = series(_without_zone(column), where)
    if pattern and not is_temporal:
        exact = _from_pattern(values, where, pattern)
    else:
        exact = _from_temporal(values, where) if is_temporal else _from_numbers(values, where, unit)
    where.refuse("the time is missing", values, exact.whole.is_null(), _MISSING)
    _check_days(values, exact, where, days, now_s, names_unit=not (pattern or is_temporal))
    per_unit = 10**exact.digits
    fine = UNITS[UNITS.index(exact.unit) + exact.digits // 3]
    return _coarsest(exact.whole.to_numpy() * per_unit + exact.fraction, fine)


def join_times(pieces: Sequence[Times]) -> Times:
    """Return all times in the finest unit of any piece.

    Raises:
        OverflowError: they do not fit into 64 bits in that unit.
    """
    finest = UNITS[max(UNITS.index(piece.unit) for piece in pieces)]
    scaled = [_scaled(piece, finest) for piece in pieces]
    return Times(np.concatenate(scaled), finest)


def day_of(value: int, unit: TimeUnit) -> str:
    """Return the day of a time as YYYY-MM-DD."""
    return (_EPOCH + timedelta(days=value // PER_SECOND[unit] // _DAY_S)).isoformat()


def text_of(value: int, unit: TimeUnit) -> str:
    """Return a time in UTC, with as many digits after the second as the unit has."""
    seconds, fraction = divmod(value, PER_SECOND[unit])
    clock = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    digits = 3 * UNITS.index(unit)
    return f"{clock:%Y-%m-%dT%H:%M:%S}{f'.{fraction:0{digits}}' if digits else ''}Z"


def _scaled(piece: Times, unit: TimeUnit) -> Ints:
    factor = PER_SECOND[unit] // PER_SECOND[piece.unit]
    if factor > 1 and len(piece.values):
        first, last = int(piece.values.min()) * factor, int(piece.values.max()) * factor
        if first < _INT64.min or last > _INT64.max:
            raise OverflowError
    return piece.values * factor


def _without_zone(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return timestamps as moments in UTC; polars refuses zones like +05:30."""
    kind = column.type
    return column.cast(pa.timestamp(kind.unit)) if pa.types.is_timestamp(kind) and kind.tz else column


def _coarsest(values: Ints, unit: TimeUnit) -> Times:
    while unit != "s" and not (values % 1000).any():
        values, unit = values // 1000, UNITS[UNITS.index(unit) - 1]
    return Times(values, unit)


def _from_temporal(values: pl.Series, where: Where) -> _Exact:
    if isinstance(values.dtype, (pl.Time, pl.Duration)):
        where.refuse_type(values.dtype, "dates or seconds since 1970")
    nothing = np.zeros(len(values), np.int64)
    if isinstance(values.dtype, pl.Datetime):
        return _Exact(values.cast(pl.Int64), nothing, 0, values.dtype.time_unit)
    return _Exact(values.cast(pl.Int64) * _DAY_S, nothing, 0, "s")


def _from_pattern(values: pl.Series, where: Where, pattern: str) -> _Exact:
    text = as_text(values.to_arrow(compat_level=pl.CompatLevel.oldest()), where)
    parsed = parse_times(text, pattern)
    is_missing = (text.is_null() | (text == "")).fill_null(value=True)
    remedy = "Correct the value or timestamp_format"
    where.refuse(f"does not match '{pattern}'", values, ~pl.Series(parsed.fits) & ~is_missing, remedy)
    whole = pl.select(pl.when(~is_missing).then(pl.Series(parsed.seconds))).to_series()
    return _Exact(whole, parsed.nanoseconds, 9, "s") if parsed.nanoseconds.any() else _whole(whole, "s")


def _from_numbers(values: pl.Series, where: Where, unit: TimeUnit) -> _Exact:
    kind = values.dtype
    if kind.is_integer() or kind == pl.Null:
        # What 64 bits do not hold becomes null, so that the refusal can name its row.
        whole = values.cast(pl.Int64, strict=False)
        far = whole.is_null() & values.is_not_null()
        where.refuse(f"time in the future, read in '{unit}'", values, far, "Correct the row or leave it out")
        return _whole(whole, unit)
    if kind.is_float():
        return _from_floats(values, where, unit)
    if not isinstance(kind, (pl.String, pl.Decimal, pl.Categorical, pl.Enum)):
        where.refuse_type(kind, "times as numbers, text or timestamps")
    return _from_text(values.cast(pl.String).str.strip_chars(), where, unit)


def _whole(whole: pl.Series, unit: TimeUnit) -> _Exact:
    return _Exact(whole, np.zeros(len(whole), np.int64), 0, unit)


def _from_floats(values: pl.Series, where: Where, unit: TimeUnit) -> _Exact:
    numbers = values.cast(pl.Float64).fill_nan(None)
    # No day is so far away; it also keeps infinities and what 64 bits do not hold out of the way.
    far = numbers.abs() >= 2.0**63
    where.refuse(f"time in the future, read in '{unit}'", values, far, "Correct the row or leave it out")
    floors = numbers.floor()
    if (floors == numbers).all():
        return _whole(floors.cast(pl.Int64), unit)
    return _from_short_floats(numbers, unit) or _from_text(numbers.cast(pl.String), where, unit, cut=True)


def _from_short_floats(numbers: pl.Series, unit: TimeUnit) -> _Exact | None:
    """Read floats of at most six decimals by arithmetic, which is twenty times as fast as by their text.

    Below 2^51 steps of the last digit no two such decimals read as one float: one that does is the shortest.
    """
    floats = numbers.fill_null(0.0).to_numpy()
    for digits in (3, 6):
        steps = np.rint(floats * 10.0**digits)
        if digits > 9 - 3 * UNITS.index(unit) or np.abs(steps).max() >= _MOST_STEPS:
            return None
        if (steps / 10.0**digits == floats).all():
            whole, fraction = np.divmod(steps.astype(np.int64), 10**digits)
            known = pl.select(pl.when(numbers.is_not_null()).then(pl.Series(whole))).to_series()
            return _Exact(known, fraction, digits, unit)
    return None


def _from_text(text: pl.Series, where: Where, unit: TimeUnit, *, cut: bool = False) -> _Exact:
    """Read decimals digit by digit; `cut` leaves out digits below nanoseconds instead of refusing them."""
    whole = text.cast(pl.Int64, strict=False)
    if not (whole.is_null() & text.is_not_null() & (text != "")).any():
        return _whole(whole, unit)
    text = _without_exponents(text, where)
    parts = text.str.extract_groups(r"^(?P<sign>[+-]?)(?P<whole>[0-9]*)\.?(?P<fraction>[0-9]*)$").struct
    digits = parts.field("fraction").str.strip_chars_end("0")
    finest = 9 - 3 * UNITS.index(unit)
    if cut:
        digits = digits.str.slice(0, finest).str.strip_chars_end("0")
    too_fine = digits.str.len_bytes() > finest
    where.refuse("finer than a nanosecond", text, too_fine, "Round it to nanoseconds")
    width = -(-int(cast("int", digits.str.len_bytes().max() or 0)) // 3) * 3
    fraction = digits.fill_null("").str.pad_end(width, "0").cast(pl.Int64, strict=False).fill_null(0)
    whole = parts.field("whole").replace("", "0").cast(pl.Int64, strict=False)
    far = whole.is_null() & parts.field("whole").is_not_null()
    where.refuse(f"time in the future, read in '{unit}'", text, far, "Correct the row or leave it out")
    negative = parts.field("sign") == "-"
    below = negative & (fraction > 0)
    whole = pl.select(pl.when(negative).then(-whole - below.cast(pl.Int64)).otherwise(whole)).to_series()
    fraction = pl.select(pl.when(below).then(10**width - fraction).otherwise(fraction)).to_series()
    return _Exact(whole, fraction.to_numpy(), width, unit)


def _without_exponents(text: pl.Series, where: Where) -> pl.Series:
    """Write out numbers like 1.7e9, make empty text null, and refuse what is no number."""
    text = pl.select(pl.when(text != "").then(text)).to_series().rename(text.name)
    plain = text.str.contains(r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)$")
    others = text.filter(~plain.fill_null(value=True)).unique()
    if len(others) == 0:
        return text
    numbers = others.cast(pl.Float64, strict=False)
    is_nan = numbers.is_nan().fill_null(value=False)
    known = others.filter(numbers.is_finite().fill_null(value=False))
    bad = text.is_in(others.filter(numbers.is_null()).to_list()) & ~plain
    if bad.any():
        value = str(text.filter(bad)[0])
        where.refuse("not a time as a number", text, bad, _pattern_remedy(value))
    far = text.is_in(others.filter(numbers.is_infinite().fill_null(value=False)).to_list())
    where.refuse("time in the future", text, far, "Correct the row or leave it out")
    written: dict[str, str | None] = {value: f"{_decimal(value):f}" for value in known.to_list()}
    written |= dict.fromkeys(others.filter(is_nan).to_list())
    return text.replace(written)


def _decimal(value: str) -> Any:
    from decimal import Decimal

    return Decimal(value)


def _check_days(
    values: pl.Series, exact: _Exact, where: Where, days: Days | None, now_s: float, *, names_unit: bool
) -> None:
    per_second = PER_SECOND[exact.unit]
    tomorrow = (now_s or time.time()) + _DAY_S
    first = _seconds(days[0] if days else _OLDEST) * per_second
    last = int(tomorrow * per_second) if days is None else (_seconds(days[1]) + _DAY_S) * per_second - 1
    fits = (_INT64.min // 10**exact.digits, _INT64.max // 10**exact.digits)
    early = exact.whole < max(first, fits[0])
    late = exact.whole > min(last, fits[1])
    unit = f", read in '{exact.unit}'" if names_unit else ""
    for bad, problem in ((early, "time before"), (late, "time after")):
        at = bad.fill_null(value=False).arg_true()
        if len(at) == 0:
            continue
        value = int(exact.whole[int(at[0])])
        limit = first if bad is early else last
        what = f"{problem} {day_of(limit, exact.unit)}{unit}"
        if days is None and bad is late:
            what = f"time in the future{unit}"
        elif value < 0 and days is None:
            what = f"negative time{unit}"
        window = (_seconds(_OLDEST), tomorrow) if days is None else (first / per_second, last / per_second)
        where.refuse(what, values, bad, _days_remedy(value, days, window, names_unit=names_unit))


def _seconds(day: date) -> int:
    return (day - _EPOCH).days * _DAY_S


def _days_remedy(value: int, days: Days | None, window_s: tuple[float, float], *, names_unit: bool) -> str:
    if names_unit:
        for pattern in _AS_DIGITS:
            moment = _read(str(value), pattern)
            if moment is not None and window_s[0] <= moment.replace(tzinfo=UTC).timestamp() <= window_s[1]:
                return f'It reads as the day {moment.date()}: set timestamp_format = "{pattern}"'
        for unit in UNITS:
            seconds = value / PER_SECOND[unit]
            if window_s[0] <= seconds <= window_s[1] and seconds > _EARLY_S:
                return f"In '{unit}' it is {day_of(value, unit)}: set timestamp_unit = \"{unit}\""
    if value == 0:
        return "A 0 often stands for a time that nobody knows: fill it in or leave the row out"
    if days is not None:
        return "Correct the row, leave it out, or widen timestamp_range"
    return 'Correct the row or leave it out; if it is right, set timestamp_range = ["FIRST-DAY", "LAST-DAY"]'


def _pattern_remedy(value: str) -> str:
    pattern = next((pattern for pattern in _GUESSES if _read(value, pattern) is not None), None)
    if pattern is None:
        return 'Write a number, or set timestamp_format, e.g. "%Y-%m-%d %H:%M:%S"'
    return f'Set timestamp_format = "{pattern}"'


def _read(value: str, pattern: str) -> datetime | None:
    # Python takes one digit for a month, so %Y%m%d would read seven digits, or an hour's.
    if pattern in _AS_DIGITS and len(value) != {"%Y%m%d": 8, "%Y%m%d%H%M": 12}.get(pattern, 14):
        return None
    try:
        return datetime.strptime(value, pattern)
    except ValueError:
        return None
