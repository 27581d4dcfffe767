"""Times as text: patterns of Python's `datetime.strptime`, over whole columns."""

import re
from typing import NamedTuple

import numpy as np
import polars as pl

from trec_semid.core.arrays import Flags, Ints

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_SHORT_MONTHS = tuple(name[:3] for name in _MONTHS)
_OFFSET = (
    r"[+-][0-9]{2}:[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,6})?)?"
    r"|[+-][0-9]{2}[0-5][0-9](?:[0-5][0-9](?:\.[0-9]{1,6})?)?|(?-i:Z)"
)
_FIELDS = {
    "Y": "[0-9]{4}",
    "y": "[0-9]{2}",
    "m": "1[0-2]|0[1-9]|[1-9]",
    "d": "3[0-1]|[1-2][0-9]|0[1-9]|[1-9]| [1-9]",
    "j": "36[0-6]|3[0-5][0-9]|[1-2][0-9]{2}|0[1-9][0-9]|00[1-9]|[1-9][0-9]|0[1-9]|[1-9]",
    "H": "2[0-3]|[0-1][0-9]|[0-9]",
    "I": "1[0-2]|0[1-9]|[1-9]",
    "M": "[0-5][0-9]|[0-9]",
    "S": "[0-5][0-9]|[0-9]",
    "f": "[0-9]{1,9}",
    "p": "am|pm",
    "z": _OFFSET,
    "Z": "utc|gmt",
    "B": "|".join(_MONTHS),
    "b": "|".join(_SHORT_MONTHS),
    "A": "|".join(_DAYS),
    "a": "|".join(name[:3] for name in _DAYS),
}
"""What each directive reads, as Python does (names in English, whatever the machine's language), with two
differences: `%f` goes on to nanoseconds, and `%Z` reads no zones but UTC, which alone say what they mean."""
_LONGER = {"F": "%Y-%m-%d", "T": "%H:%M:%S", "R": "%H:%M", "D": "%m/%d/%y", "h": "%b"}
_DIGITS = 9
_DAY_S = 86_400


class ParsedTimes(NamedTuple):
    """Times of n texts."""

    seconds: Ints
    """(n,) whole seconds since 1970; 0 where a text does not fit."""
    nanoseconds: Ints
    """(n,) after these, below 10**9."""
    fits: Flags
    """(n,) whether the text is a time under the pattern."""


def check_pattern(pattern: str) -> None:
    """Check that a pattern can be read as Python reads it.

    Raises:
        ValueError: a directive that is unknown or repeated, two that say one thing, no year, no month for a
            day.
    """
    names = _directives(pattern)
    for name in names:
        if name not in _FIELDS and name not in ("%", *_LONGER):
            what = "a pattern of Python's strptime" if name else "a pattern: it ends in a single '%'"
            known = ", ".join(f"%{each}" for each in (*_FIELDS, *_LONGER))
            hint = "; write '.%f' for fractions of a second" if name in (".", *"369") else ""
            raise ValueError(f"'%{name}' in '{pattern}' is not part of {what}{hint}. There are: {known}")
    fields = [name for name in _directives(_expanded(pattern)) if name != "%"]
    twice = next((name for name in fields if fields.count(name) > 1), None)
    if twice:
        longer = ", ".join(f"%{short} is {long}" for short, long in _LONGER.items())
        raise ValueError(f"'%{twice}' occurs twice in '{pattern}' ({longer})")
    for group in ("Yy", "mbB", "HI", "aA"):
        if sum(name in group for name in fields) > 1:
            both = " and ".join(f"%{name}" for name in fields if name in group)
            raise ValueError(f"{both} in '{pattern}' say the same thing twice; use one of them")
    if not any(name in "Yy" for name in fields):
        raise ValueError(f"'{pattern}' has no year (%Y or %y)")
    if "d" in fields and not any(name in "mbBj" for name in fields):
        raise ValueError(f"'{pattern}' has a day but no month (%m, %b or %B)")


def parse_times(text: pl.Series, pattern: str) -> ParsedTimes:
    """Read a column of text as `datetime.strptime` reads each, in UTC where the pattern has no `%z`.

    Args:
        text: (n,) String; null does not fit.
        pattern: one that `check_pattern` passes.
    """
    groups = text.str.extract_groups(_regex(pattern))
    parts_of_time = {name: groups.struct.field(name) for name in groups.struct.fields}
    # A regex without groups that takes part gives nulls throughout: what does not match has no year.
    year_name = "Y" if "Y" in parts_of_time else "y"
    fits = parts_of_time[year_name].is_not_null().to_numpy()
    years = _numbers(parts_of_time, year_name, 1970)
    if year_name == "y":
        years = np.where(years >= 69, 1900 + years, 2000 + years)
    fits = fits & (years >= 1)
    days, is_day = _days(parts_of_time, np.where(fits, years, 1970))
    offsets_s, offsets_ns, is_offset = _offsets(parts_of_time.get("z"), len(text))
    fits = fits & is_day & is_offset
    clock = (
        _hours(parts_of_time) * 3600 + _numbers(parts_of_time, "M", 0) * 60 + _numbers(parts_of_time, "S", 0)
    )
    nanoseconds = _fraction(parts_of_time.get("f"), len(text), _DIGITS) - offsets_ns
    seconds = days * _DAY_S + clock - offsets_s + nanoseconds // 10**_DIGITS
    return ParsedTimes(np.where(fits, seconds, 0), np.where(fits, nanoseconds % 10**_DIGITS, 0), fits)


def _directives(pattern: str) -> list[str]:
    return re.findall(r"%(.?)", pattern, re.DOTALL)


def _expanded(pattern: str) -> str:
    return re.sub("%(.)", lambda match: _LONGER.get(match[1], match[0]), pattern, flags=re.DOTALL)


def _regex(pattern: str) -> str:
    pieces: list[str] = []
    pattern = _expanded(pattern)
    # Where digits follow the fraction, only Python's six say where it ends.
    fields = _FIELDS | ({"f": "[0-9]{1,6}"} if re.search("%f(%[YymdjHIMS]|[0-9])", pattern) else {})
    for directive, blank, literal in re.findall(r"%(.)|(\s+)|([^%\s]+)", pattern, re.DOTALL):
        if directive:
            pieces.append("%" if directive == "%" else f"(?P<{directive}>{fields[directive]})")
        else:
            pieces.append(r"\s+" if blank else re.sub(r"([\\.^$*+?(){}\[\]|&~#-])", r"\\\1", literal))
    return f"(?i)^(?:{''.join(pieces)})$"


def _numbers(parts_of_time: dict[str, pl.Series], name: str, default: int) -> Ints:
    if name not in parts_of_time:
        return np.int64(default)  # pyright: ignore[reportReturnType]
    digits = parts_of_time[name].str.strip_chars().cast(pl.Int64, strict=False)
    return digits.fill_null(default).to_numpy()


def _days(parts_of_time: dict[str, pl.Series], years: Ints) -> tuple[Ints, Flags]:
    """Return days since 1970, and which there are: no 30th of February, no 366th day of 2023."""
    if "j" in parts_of_time:
        first, past = _first_day((years - 1970) * 12), _first_day((years - 1969) * 12)
        days = first + _numbers(parts_of_time, "j", 1) - 1
        return days, days < past
    months = (years - 1970) * 12 + _months(parts_of_time) - 1
    days = _first_day(months) + _numbers(parts_of_time, "d", 1) - 1
    return days, days < _first_day(months + 1)


def _first_day(months: Ints) -> Ints:
    """Return the days since 1970 of the first of each month, which is counted from January 1970."""
    return months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)


def _months(parts_of_time: dict[str, pl.Series]) -> Ints:
    for name, words in (("B", _MONTHS), ("b", _SHORT_MONTHS)):
        if name in parts_of_time:
            numbers = (
                parts_of_time[name]
                .str.to_lowercase()
                .replace_strict(list(words), list(range(1, 13)), default=1, return_dtype=pl.Int64)
            )
            return numbers.to_numpy()
    return _numbers(parts_of_time, "m", 1)


def _hours(parts_of_time: dict[str, pl.Series]) -> Ints:
    if "I" not in parts_of_time:
        return _numbers(parts_of_time, "H", 0)
    hours = _numbers(parts_of_time, "I", 0) % 12
    if "p" not in parts_of_time:
        return hours
    return hours + 12 * (parts_of_time["p"].str.to_lowercase() == "pm").fill_null(value=False).to_numpy()


def _fraction(digits: pl.Series | None, size: int, width: int) -> Ints:
    if digits is None:
        return np.zeros(size, np.int64)
    return digits.fill_null("").str.pad_end(width, "0").cast(pl.Int64).to_numpy()


def _offsets(zone: pl.Series | None, size: int) -> tuple[Ints, Ints, Flags]:
    """Return the offsets from UTC in seconds and nanoseconds, and which are under a day, as Python asks."""
    if zone is None:
        return np.zeros(size, np.int64), np.zeros(size, np.int64), np.ones(size, bool)
    digits = zone.str.replace_all(":", "", literal=True).fill_null("Z")
    hours, minutes, seconds = (
        digits.str.slice(start, 2).cast(pl.Int64, strict=False).fill_null(0).to_numpy() for start in (1, 3, 5)
    )
    part = digits.str.extract(r"\.([0-9]+)$").fill_null("0")
    signs = np.where(digits.str.starts_with("-").to_numpy(), -1, 1)
    return (
        signs * (hours * 3600 + minutes * 60 + seconds),
        signs * _fraction(part, size, _DIGITS),
        hours < 24,
    )
