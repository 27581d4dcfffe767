"""Ratings as exact values: whole numbers beyond 2^53, decimals and text stay what the source says."""

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from trec_semid.core.arrays import Floats, Int32s
from trec_semid.data.raw.columns import Where, as_numbers, series

Values = Floats | list[Decimal]
_EXACT_WHOLE = 2**53
_SAFE_DIGITS = 15
"""A decimal of so many digits is the shortest one that reads as its float."""


class Ratings(NamedTuple):
    """Ratings of n events, as codes into their distinct values.

    A float with a fraction stands for the shortest decimal that reads as it in its own type: 3.7 is 3.7 in 32
    bits too. A whole one is what it is.
    """

    codes: Int32s
    """(n,) -1 where an event has none."""
    values: Values
    """Distinct: floats where each says exactly what the source does, else decimals."""

    def decimals(self) -> list[Decimal]:
        """Return the distinct values as decimals."""
        return self.values if isinstance(self.values, list) else _as_decimals(self.values)

    def numbers(self) -> Floats:
        """Return (n,) floats, NaN where an event has none; what a float cannot say is rounded."""
        return np.append(np.array(self.values, np.float64), np.nan)[self.codes]


def as_ratings(column: pa.ChunkedArray, where: Where) -> Ratings:
    """Return the ratings of a column of numbers, decimals or text.

    Raises:
        DataError: a value is no finite number, or too large for a rating.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    numbers = as_numbers(column, where)
    too_large = np.abs(numbers) > np.finfo(np.float32).max
    where.refuse("too large for a rating", pl.Series(numbers), pl.Series(too_large), "Correct the value")
    encoded = column.combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy().astype(np.int32, copy=False)
    distinct = series(pa.chunked_array([encoded.dictionary]), where)
    if distinct.dtype == pl.String:
        distinct = distinct.str.strip_chars()
        blank = (distinct == "").to_numpy()
        codes = np.where(np.append(blank, False)[codes], np.int32(-1), codes)
        distinct = distinct.replace("", "0")  # no event has its code any more
    return _merged([Ratings(codes, _exact(distinct))])


def join_ratings(pieces: Sequence[Ratings]) -> Ratings:
    """Return the ratings of all pieces, one after another."""
    return _merged(pieces)


def _merged(pieces: Sequence[Ratings]) -> Ratings:
    """Number equal values alike, whichever piece and spelling they come from."""
    shifts = np.cumsum([0, *(len(piece.values) for piece in pieces)])
    codes = [
        np.where(piece.codes < 0, -1, piece.codes + at) for piece, at in zip(pieces, shifts, strict=False)
    ]
    values, numbers = _distinct(pieces)
    renumbered = np.append(numbers, -1).astype(np.int32)
    return Ratings(renumbered[np.concatenate(codes)], values)


def _distinct(pieces: Sequence[Ratings]) -> tuple[Values, Int32s]:
    floats = [piece.values for piece in pieces if not isinstance(piece.values, list)]
    if len(floats) == len(pieces):
        values, numbers = np.unique(np.concatenate(floats), return_inverse=True)
        return values, numbers.astype(np.int32)
    # Decimals hash by value, so 1.0 and 1.00 are one; the loop is over distinct values, not over events.
    known: dict[Decimal, int] = {}
    numbers = [known.setdefault(value, len(known)) for piece in pieces for value in piece.decimals()]
    return list(known), np.array(numbers, np.int32)


def _exact(distinct: pl.Series) -> Values:
    """Return floats if the shortest decimal of each is what the source says, else decimals."""
    kind = distinct.dtype
    if isinstance(kind, (pl.Float64, pl.Null)):
        return distinct.cast(pl.Float64).fill_null(0).to_numpy()
    if isinstance(kind, pl.Float16):
        return np.array([float(str(value)) for value in distinct.to_numpy()])
    if kind.is_float():
        exact, shortest = distinct.cast(pl.Float64), distinct.cast(pl.String).cast(pl.Float64)
        return np.where((exact.floor() == exact).to_numpy(), exact.to_numpy(), shortest.to_numpy())
    if kind.is_integer() and (len(distinct) == 0 or _is_small(distinct)):
        return distinct.cast(pl.Float64).to_numpy()
    text = distinct.cast(pl.String)
    floats = text.cast(pl.Float64)
    is_short = text.str.contains(r"^[+-]?[0-9.]+$") & (text.str.len_bytes() <= _SAFE_DIGITS)
    if is_short.all():
        return floats.to_numpy()
    decimals = [Decimal(value) for value in text.to_list()]
    return floats.to_numpy() if _as_decimals(floats.to_numpy()) == decimals else decimals


def _is_small(whole: pl.Series) -> bool:
    least, most = whole.min(), whole.max()
    assert isinstance(least, int)
    assert isinstance(most, int)
    return least >= -_EXACT_WHOLE and most <= _EXACT_WHOLE


def _as_decimals(floats: Floats) -> list[Decimal]:
    return [Decimal(value) if value.is_integer() else Decimal(repr(value)) for value in floats.tolist()]
