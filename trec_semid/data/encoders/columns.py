"""Reads item columns as what encoders need: masks, texts, categories, numbers, years."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions when it is imported)

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from trec_semid.core.arrays import Array
from trec_semid.data.encoders.chunks import Items

_TEXT = pa.large_string()
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no", "")
_YEARS = (1000, 2200)
"""What can be a year; other numbers are mistakes or marks of absence."""


def read_mask(items: Items, name: str, start: int, stop: int) -> Array:
    """Return (n,) bool from booleans, 1 and 0, or text such as yes and no; null means missing.

    Raises:
        DataError: no such column, or a value that is neither.
    """
    texts = pc.utf8_lower(read_texts(items, name, start, stop, joined_by=" ")).fill_null("")
    is_true, is_false = (pc.is_in(texts, pa.array(words, _TEXT)) for words in (_TRUE, _FALSE))
    odd = np.asarray(pc.invert(pc.or_(is_true, is_false)))
    if odd.any():
        at = int(np.argmax(odd))
        remedy = f"Write {', '.join(_TRUE + _FALSE[:-1])} or nothing"
        value = items.column(name)[start + at].as_py()
        raise items.fault("neither true nor false", name, item=start + at, value=value, remedy=remedy)
    return np.asarray(is_true)


def read_values(
    items: Items, name: str, start: int, stop: int, separator: str | None = None
) -> tuple[Array, pa.Array]:
    """Return the values of a column that may hold several per item.

    Args:
        items: the items.
        name: a column of strings, numbers, booleans, or lists of these.
        start: first item.
        stop: past the last item.
        separator: splits strings into values where given.

    Returns:
        (V,) int64 rising item positions within the part, and (V,) stripped large strings, no null or ''.

    Raises:
        DataError: no such column, or a type that cannot be written as text.
    """
    column: Any = items.column(name, start, stop)
    if is_list(column.type):
        parents, values = np.asarray(pc.list_parent_indices(column)), column.flatten()
    else:
        parents, values = np.arange(stop - start), column
    texts = _as_text(values, items, name)
    if separator is not None:
        pieces = pc.split_pattern(texts, separator)
        parents, texts = parents[np.asarray(pc.list_parent_indices(pieces))], pieces.flatten()
    texts = pc.utf8_trim_whitespace(texts)
    is_filled = pc.fill_null(pc.not_equal(texts, ""), False)
    return parents[np.asarray(is_filled)].astype(np.int64), texts.filter(is_filled)


def read_texts(items: Items, name: str, start: int, stop: int, *, joined_by: str) -> pa.Array:
    """Return (n,) large strings, null where an item has nothing; several values are joined."""
    parents, values = read_values(items, name, start, stop)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(parents, minlength=stop - start))])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
    texts = pc.binary_join(lists, pa.scalar(joined_by, _TEXT))
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, _TEXT), texts)


def read_numbers(items: Items, name: str) -> Array:
    """Return (N,) float64, NaN where there is no number.

    Raises:
        DataError: no such column, text that is no number, or an infinite value.
    """
    column: Any = items.column(name)
    if not (pat.is_integer(column.type) or pat.is_floating(column.type)):
        column = _parse_numbers(items, name)
    values = np.asarray(column.cast(pa.float64(), safe=False).fill_null(np.nan))
    infinite = np.isinf(values)
    if infinite.any():
        at = int(np.argmax(infinite))
        remedy = "Write null where an item has no number"
        raise items.fault("not a finite number", name, item=at, value=float(values[at]), remedy=remedy)
    return values


def read_years(items: Items, name: str) -> Array:
    """Return (N,) float64 years from numbers, text or dates, NaN where there is none.

    Raises:
        DataError: as `read_numbers`, or a number that cannot be a year.
    """
    column: Any = items.column(name)
    if pat.is_date(column.type) or pat.is_timestamp(column.type):
        years = np.asarray(pc.year(column).cast(pa.float64()).fill_null(np.nan))
    else:
        years = read_numbers(items, name)
    odd = (years < _YEARS[0]) | (years > _YEARS[1])
    if odd.any():
        at = int(np.argmax(odd))
        remedy = f"Expected {_YEARS[0]} to {_YEARS[1]}; write null where it is unknown"
        raise items.fault("not a year", name, item=at, value=float(years[at]), remedy=remedy)
    return years


def is_list(kind: pa.DataType) -> bool:
    """Return whether a type is a list of any sort."""
    return pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind)


def _as_text(values: Any, items: Items, name: str) -> pa.Array:
    kind = values.type
    if pat.is_dictionary(kind):
        return _as_text(values.dictionary_decode(), items, name)
    if pat.is_floating(kind):
        return _written(values.cast(pa.float64()))
    if pat.is_string(kind) or pat.is_large_string(kind) or pat.is_primitive(kind) or pat.is_null(kind):
        return values.cast(_TEXT)
    remedy = "Expected strings, numbers, booleans or lists of these"
    raise items.fault("cannot be written as text", name, value=str(kind), remedy=remedy)


def _written(numbers: Any) -> pa.Array:
    """Return numbers as text, whole ones without a decimal point, null where not finite."""
    whole = pc.and_(pc.equal(numbers, pc.floor(numbers)), pc.less(pc.abs(numbers), 1e15))
    texts = pc.if_else(whole, numbers.cast(pa.int64(), safe=False).cast(_TEXT), numbers.cast(_TEXT))
    return pc.if_else(pc.is_finite(numbers), texts, pa.scalar(None, _TEXT))


def _parse_numbers(items: Items, name: str) -> pa.Array:
    parents, texts = read_values(items, name, 0, len(items.source_rows))
    values = np.full(len(items.source_rows), np.nan)
    if len(np.unique(parents)) != len(parents):
        at = int(parents[np.argmax(parents[1:] == parents[:-1])])
        raise items.fault("several values where one number is expected", name, item=at)
    for at, text in zip(parents.tolist(), texts.to_pylist(), strict=True):
        try:
            values[at] = float(text)
        except ValueError:
            remedy = "Write null where an item has no number, or use the column as a category"
            raise items.fault("not a number", name, item=at, value=text, remedy=remedy) from None
    return pa.array(values)
