"""Columns read strictly: ids, numbers, flags; what does not fit is refused by file, row and value."""

from typing import NamedTuple, NoReturn, cast

import numpy as np
import polars as pl
import pyarrow as pa

from trec_semid.core.arrays import Flags, Floats, Ints
from trec_semid.core.errors import DataError
from trec_semid.data.raw.formats.chunks import Origins, locate

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no", "")


class Where(NamedTuple):
    """The place of a column, for errors."""

    origins: Origins
    field: str

    def refuse_type(self, kind: object, expected: str) -> NoReturn:
        """Refuse the whole column.

        Raises:
            DataError: always.
        """
        file = self.origins[0][1]
        raise DataError(
            "wrong type", file=file, field=self.field, value=str(kind), remedy=f"Write {expected}"
        )

    def refuse(self, problem: str, values: pl.Series, bad: pl.Series, remedy: str) -> None:
        """Refuse the first bad value, if there is one.

        Raises:
            DataError: `bad` is true somewhere.
        """
        at = bad.fill_null(value=False).arg_true()
        if len(at):
            index = int(at[0])
            file, row = locate(self.origins, index)
            value = values[index]
            raise DataError(problem, file=file, row=row, field=self.field, value=value, remedy=remedy)


def as_text(column: pa.ChunkedArray, where: Where) -> pl.Series:
    """Return a column of text or integers as text.

    Raises:
        DataError: the column holds something else.
    """
    values = series(column, where)
    if isinstance(values.dtype, (pl.Categorical, pl.Enum)) or values.dtype.is_integer():
        return values.cast(pl.String)
    if not isinstance(values.dtype, (pl.String, pl.Null)):
        where.refuse_type(values.dtype, "text or integers")
    return values.cast(pl.String)


def as_ids(column: pa.ChunkedArray, where: Where) -> pa.Array:
    """Return (n,) ids as text.

    Raises:
        DataError: the column is neither text nor integers, or an id is missing.
    """
    ids = as_text(column, where)
    missing = ids.is_null() | (ids == "")
    where.refuse("the id is missing", ids, missing, "Fill it in or leave the row out")
    return ids.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string())


def as_numbers(column: pa.ChunkedArray, where: Where, *, nan_is_missing: bool = False) -> Floats:
    """Return (n,) numbers as float64, NaN where the value is missing (null or empty text).

    Raises:
        DataError: a value is no number, infinite, or NaN while that does not mean 'missing'.
    """
    values = series(column, where)
    numbers = _parse(values, pl.Float64, where, "a number")
    if not nan_is_missing:
        remedy = "Leave it empty where it is unknown, or leave the row out"
        where.refuse("not a finite number", values, ~numbers.is_finite(), remedy)
    where.refuse("not a finite number", values, numbers.is_infinite(), "Correct the value")
    return numbers.fill_null(np.nan).to_numpy()


def as_integers(column: pa.ChunkedArray, where: Where) -> Ints:
    """Return (n,) whole numbers, none missing.

    Raises:
        DataError: a value is missing or not whole.
    """
    values = series(column, where)
    whole = values.cast(pl.Int64, strict=False) if values.dtype.is_integer() else _whole(values, where)
    where.refuse("missing or beyond 64 bits", values, whole.is_null(), "Fill it in")
    return whole.to_numpy()


def as_flags(column: pa.ChunkedArray, where: Where) -> Flags:
    """Return (n,) true or false; missing is false.

    Raises:
        DataError: a value is neither.
    """
    values = series(column, where)
    if values.dtype == pl.Boolean:
        return values.fill_null(value=False).to_numpy()
    text = as_text(column, where).fill_null("").str.to_lowercase()
    known = text.is_in([*_TRUE, *_FALSE])
    where.refuse(
        "neither true nor false", values, ~known, f"Write {', '.join(_TRUE + _FALSE[:-1])} or nothing"
    )
    return text.is_in(list(_TRUE)).to_numpy()


def series(column: pa.ChunkedArray, where: Where) -> pl.Series:
    """Return a column as polars has it.

    Raises:
        DataError: its type is none of text, numbers and times.
    """
    try:
        return cast("pl.Series", pl.from_arrow(column))
    except (pl.exceptions.PolarsError, ValueError, TypeError):
        where.refuse_type(column.type, "text or numbers")


def _parse(values: pl.Series, dtype: type[pl.DataType], where: Where, what: str) -> pl.Series:
    """Cast, and refuse what is there before and not after; an empty text is missing."""
    if values.dtype == pl.String:
        values = values.str.strip_chars()
    elif not values.dtype.is_numeric() and values.dtype != pl.Null:
        where.refuse_type(values.dtype, what)
    parsed = values.cast(dtype, strict=False)
    lost = parsed.is_null() & values.is_not_null()
    if values.dtype == pl.String:
        lost &= values != ""
    where.refuse(f"not {what}", values, lost, f"Write {what} or leave it empty")
    return parsed


def _whole(values: pl.Series, where: Where) -> pl.Series:
    """Parse whole numbers, which floats may hold too (`881250949.0`)."""
    if values.dtype == pl.String:
        whole = values.str.strip_chars().cast(pl.Int64, strict=False)
        if not (whole.is_null() & values.is_not_null()).any():
            return whole
    floats = _parse(values, pl.Float64, where, "a whole number")
    far = floats.is_not_null() & ~(floats.abs() < 2.0**63)
    where.refuse("not a whole number", values, far | (floats != floats.floor()), "Write a whole number")
    return floats.cast(pl.Int64, strict=False)
