"""Rows of delimited text by RFC 4180, told apart without reading their fields.

A quote opens a field only at its beginning and closes it only at its end; two quotes in a row stand for one.
So the number of quotes before a byte says whether it lies inside a quoted field: odd is inside.
Legend: a layout is how fields and rows are told apart; a block is a piece of whole rows, as UTF-8.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from trec_semid.core.arrays import Ints
from trec_semid.data.raw.formats.utf8 import Utf8

UNIT_SEPARATOR = b"\x1f"
"""Stands in for separators of several bytes."""
QUOTE, LINE_FEED, CARRIAGE_RETURN = b'"'[0], b"\n"[0], b"\r"[0]
_ROWS_INSIDE = 3
_FEW_ROWS = 1000
_NUMBER = re.compile(rb'"?[+-]?[0-9][0-9.,:/eETZ +-]*"?\r?')
"""Or a time."""
_SLICE = 1 << 18
"""Bytes looked at together: they stay in the processor's cache."""


class Layout(NamedTuple):
    """How fields are told apart."""

    separator: bytes
    """As in the file, in UTF-8; one of several bytes becomes UNIT_SEPARATOR in blocks."""
    quoted: bool
    encoding: str

    @property
    def mark(self) -> bytes:
        """The separator in blocks, one byte."""
        return self.separator if len(self.separator) == 1 else UNIT_SEPARATOR


class Block(NamedTuple):
    """Whole rows."""

    data: bytes
    offset: int
    """UTF-8 bytes of the file before it."""


def count_byte(data: bytes, byte: int, end: int | None = None) -> int:
    """Return how often a byte stands before `end`."""
    array = np.frombuffer(data, np.uint8)[:end]
    starts = range(0, len(array), _SLICE)
    return sum(int(np.count_nonzero(array[start : start + _SLICE] == byte)) for start in starts)


def find_byte(data: bytes, byte: int) -> Ints:
    """Return (n,) the offsets at which a byte stands."""
    array = np.frombuffer(data, np.uint8)
    starts = range(0, len(array), _SLICE)
    offsets = [np.flatnonzero(array[start : start + _SLICE] == byte) + start for start in starts]
    return np.concatenate(offsets) if offsets else np.zeros(0, np.int64)


def row_ends(data: bytes, layout: Layout, inside: int = 0) -> Ints:
    """Return (n,) where rows end: the offset of every line feed outside quotes.

    Args:
        data: UTF-8.
        layout: how fields are told apart.
        inside: 1 where `data` begins inside a quoted field.
    """
    ends = find_byte(data, LINE_FEED)
    if not layout.quoted:
        return ends
    quotes = find_byte(data, QUOTE)
    return ends[(np.searchsorted(quotes, ends) + inside) % 2 == 0]


def end_of_row(data: bytes, layout: Layout, start: int = 0) -> int:
    """Return where the row that begins at `start` ends, its line feed included."""
    end, counted = data.find(b"\n", start), start
    while end >= 0 and layout.quoted and data.count(b'"', counted, end) % 2:
        counted = data.find(b'"', end) + 1  # behind the quote that closes the field
        end = data.find(b"\n", counted) if counted else -1
    return end + 1 or len(data)


def rows_of(data: bytes, layout: Layout) -> Iterator[tuple[int, bytes]]:
    """Yield the rows of a block without their line ends, each with its offset."""
    start = 0
    for end in [*row_ends(data, layout).tolist(), len(data)]:
        if start < len(data):
            yield start, data[start:end].removesuffix(b"\r")
        start = end + 1


def row_of_rows(data: bytes, layout: Layout, num_columns: int) -> int:
    """Return the offset of a row of several lines each of which looks like a row, or -1.

    Each has a row's separators, and numbers in the columns that hold numbers alone elsewhere. Where there
    are no such columns, three lines or more of three columns or more must have a row's separators. Text over
    several lines does not look so; rows between two quotes of which one is missing do.
    """
    numeric: list[int] | None = None
    for start, end in _rows_of_lines(data, layout, num_columns):
        inside = [line.split(layout.mark) for line in data[start:end].split(b"\n")]
        if any(len(line) != num_columns for line in inside):
            continue
        if numeric is None:
            numeric = _numeric_columns(data, layout, num_columns)
        if numeric:
            are_rows = all(_NUMBER.fullmatch(line[column]) for line in inside for column in numeric)
        else:
            are_rows = len(inside) >= _ROWS_INSIDE and num_columns > 2
        if are_rows:
            return start
    return -1


def _rows_of_lines(data: bytes, layout: Layout, num_columns: int) -> list[tuple[int, int]]:
    """Return begin and end of the rows of several lines that have as many separators as so many rows."""
    feeds, quotes = (np.append(find_byte(data, byte), len(data)) for byte in (LINE_FEED, QUOTE))
    last_lines = np.flatnonzero(np.searchsorted(quotes, feeds) % 2 == 0)
    ends = feeds[last_lines]
    lines = np.diff(last_lines, prepend=-1)
    separators = np.diff(np.searchsorted(find_byte(data, layout.mark[0]), ends), prepend=0)
    rows = np.flatnonzero((lines > 1) & (separators == lines * (num_columns - 1)))
    starts = np.append(0, ends[:-1] + 1)
    return list(zip(starts[rows].tolist(), ends[rows].tolist(), strict=True))


def _numeric_columns(data: bytes, layout: Layout, num_columns: int) -> list[int]:
    """Return the columns that hold numbers in each of the first rows of one line."""
    rows = [row.split(layout.mark) for _, row in islice(rows_of(data, layout), _FEW_ROWS) if b"\n" not in row]
    plain = [row for row in rows if len(row) == num_columns]
    return [
        column
        for column in range(num_columns)
        if plain and all(_NUMBER.fullmatch(row[column]) for row in plain)
    ]


def num_fields(row: bytes, layout: Layout) -> int:
    """Return the number of a row's fields."""
    parts = row.split(b'"')[::2] if layout.quoted else [row]
    return 1 + sum(part.count(layout.mark) for part in parts)


def fields_of(row: bytes, layout: Layout) -> list[str]:
    """Return the texts of a row's fields."""
    parts = row.split(b'"') if layout.quoted else [row]
    # Checked rows hold no NUL character: it can stand for separators outside quotes.
    parts[::2] = [part.replace(layout.mark, b"\0") for part in parts[::2]]
    fields = b'"'.join(parts).split(b"\0")
    if layout.quoted:
        fields = [field[1:-1].replace(b'""', b'"') if field[:1] == b'"' else field for field in fields]
    return [field.decode() for field in fields]


def count_rows(text: Utf8, layout: Layout, stop: int, block_bytes: int) -> int:
    """Return the number of rows that end within the first `stop` bytes; for errors only."""
    rows, inside, offset = 0, 0, 0
    while offset < stop and (piece := text.read(block_bytes)[: stop - offset]):
        rows += len(row_ends(piece, layout, inside))
        inside = (inside + piece.count(b'"')) % 2
        offset += len(piece)
    return rows
