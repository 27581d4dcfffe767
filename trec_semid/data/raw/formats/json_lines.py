"""JSON objects, one a line, with the types that their values have."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions when it is imported)

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from trec_semid.core.errors import DataError
from trec_semid.data.raw.formats.chunks import Chunk, check_columns
from trec_semid.data.raw.formats.files import first_line, reading
from trec_semid.data.raw.formats.json_kinds import (
    NOTHING,
    Kind,
    MixedError,
    as_kind,
    kind_of,
    misfit,
    parse_line,
    wider,
)
from trec_semid.data.raw.formats.utf8 import MalformedError, first_not_utf8, not_text, open_text

_BLOCK_BYTES = 1 << 24
_HEAD_BYTES = 1 << 20
_FEW_LINES = 1000
_MARK = "\ufeff".encode()
_NULL_FIRST, _NULL_LINE = re.compile(rb"[ \t\r\n]*null"), re.compile(rb"\n[ \t\r]*null")
_LONGEST_WHOLE = 2.0**53
"""Below it every whole number is a float."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most `size`; none at the end."""
        ...


def read_json_lines(file: str, columns: list[str] | None, encoding: str = "utf-8") -> Iterator[Chunk]:
    """Stream JSON objects; None reads every key that a line has.

    A key may be left out of any line, but one of `columns` that no line has is refused. Keys that are not
    read may hold anything.

    Raises:
        DataError: a line that is no JSON object, or a value of another kind than the lines before have.
    """
    with reading(file), _row_faults(file, encoding):
        have = json_keys(file, columns, encoding)
        check_columns(file, have, columns)
        reader = _Reader(file, encoding, columns or have)
        row, position = 1, 0
        with open_text(file, encoding) as (text, stored):
            for block in whole_lines(text, _BLOCK_BYTES):
                table = reader.read(block, row)
                before, position = position, stored.tell()
                if table.num_rows:
                    yield Chunk(
                        table, file, row, position - before, partial(line_of, file, encoding=encoding)
                    )
                row += table.num_rows


def json_keys(file: str, needed: list[str] | None, encoding: str = "utf-8") -> list[str]:
    """Return the keys of a file's objects, or of some of them where these have all that are needed.

    Returns `needed` where there is no object: that is another error.
    """
    keys: dict[str, None] = {}
    missing = set(needed or ())
    num_lines = 0
    with open_text(file, encoding) as (text, _):
        for block in whole_lines(text, _HEAD_BYTES):
            marks = [json.dumps(name, ensure_ascii=False).encode() for name in missing]
            for line in block.split(b"\n"):
                num_lines += bool(line.strip())
                # Most lines need no look: a key stands there as it is, or with escapes.
                if (
                    num_lines <= _FEW_LINES
                    or needed is None
                    or b"\\" in line
                    or any(m in line for m in marks)
                ):
                    keys |= dict.fromkeys(_keys_of_line(line))
            missing -= keys.keys()
            if needed is not None and not missing:
                return list(keys)
    return list(keys) if keys or needed is None else list(needed)


def _keys_of_line(line: bytes) -> list[str]:
    try:
        return list(parse_line(line))
    except (ValueError, RecursionError, MixedError):
        return []


class _Reader:
    """Reads blocks of lines in their order: Arrow as long as kinds do not change, else line by line."""

    def __init__(self, file: str, encoding: str, columns: list[str]) -> None:
        for name in columns:
            if "\0" in name:  # Arrow hands names on as C strings
                problem = f"a key holds a NUL character: {name!r}"
                raise DataError(problem, file=file, remedy="Give it another name")
        self._file, self._encoding = file, encoding
        self._kinds = dict.fromkeys(columns, NOTHING)
        self._offset = 0

    def read(self, block: bytes, first_row: int) -> pa.Table:
        """Return the rows of a block."""
        at = first_not_utf8(block)
        if at >= 0:
            raise not_text(self._encoding, self._offset, block, at)
        self._offset += len(block)
        if first_row == 1:
            self._guess(block)
        table = self._by_arrow(block) if self._suits_arrow(block) else None
        return self._line_by_line(block, first_row) if table is None else table

    def _guess(self, block: bytes) -> None:
        """Look at the first lines: a guess that is wrong costs time and no more."""
        for line in islice(block.split(b"\n", _FEW_LINES), _FEW_LINES):
            try:
                record = parse_line(line)
                for name, kind in self._kinds.items():
                    self._kinds[name] = wider(kind, kind_of(record.get(name)))
            except (ValueError, RecursionError, MixedError):
                continue

    def _suits_arrow(self, block: bytes) -> bool:
        # Arrow takes NUL characters and byte order marks inside a file, and miscounts lists of nulls. A line
        # that is null and no object kills the process where it is the first, and is a row where it is not.
        marked = not block.isascii() and (block.startswith(_MARK) or b"\n" + _MARK in block)
        has_null_line = bool(_NULL_FIRST.match(block) or _NULL_LINE.search(block))
        counts_well = Kind("null", is_list=True) not in self._kinds.values()
        return b"\0" not in block and not marked and not has_null_line and counts_well

    def _by_arrow(self, block: bytes) -> pa.Table | None:
        schema = pa.schema([(name, kind.arrow) for name, kind in self._kinds.items()])
        parse = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        read = pajson.ReadOptions(use_threads=False, block_size=len(block) + 1)
        try:
            table = pajson.read_json(pa.BufferReader(block), read, parse)
        except pa.ArrowException:
            return None
        if any(_has_long_numbers(table.column(name)) for name in table.column_names):
            return None
        # Arrow takes several objects on a line, and one on several.
        if table.num_rows != block.count(b"\n") + (not block.endswith(b"\n")):
            filled = sum(1 for line in block.split(b"\n") if line.strip())
            return table if table.num_rows == filled else None
        return table

    def _line_by_line(self, block: bytes, first_row: int) -> pa.Table:
        values: dict[str, list[Any]] = {name: [] for name in self._kinds}
        for row, line in enumerate(filter(bytes.strip, block.split(b"\n")), start=first_row):
            self._add(line, row, values)
        arrays = [self._column(name, read, first_row) for name, read in values.items()]
        return pa.table(arrays, names=list(self._kinds))

    def _column(self, name: str, values: list[Any], first_row: int) -> pa.Array:
        kind, held = self._kinds[name], list[Any]()
        for row, value in enumerate(values, start=first_row):
            try:
                held.append(as_kind(value, kind))
            except MixedError as error:
                raise self._misfit(str(error), row, name, value) from None
        return pa.array(held, kind.arrow)

    def _add(self, line: bytes, row: int, values: dict[str, list[Any]]) -> None:
        name, value = None, None
        try:
            record = parse_line(line)
            if record.twice in self._kinds:
                raise MixedError(f"the key '{record.twice}' stands there twice")
            for name, kind in self._kinds.items():
                value = record.get(name)
                self._kinds[name] = wider(kind, kind_of(value))
                values[name].append(value)
        except (MixedError, ValueError, RecursionError) as error:
            problem = str(error) if isinstance(error, MixedError) else f"not JSON: {first_line(error)}"
            raise self._misfit(problem, row, name, value) from None

    def _misfit(self, problem: str, row: int, name: str | None, value: Any) -> DataError:
        return misfit(problem, self._file, line_of(self._file, row, encoding=self._encoding), name, value)


def _has_long_numbers(column: pa.ChunkedArray) -> bool:
    """Return whether floats may stand for whole numbers that were rounded: Arrow does that without a word."""
    if pa.types.is_list(column.type):
        column = pc.list_flatten(column)
    return pa.types.is_float64(column.type) and bool(
        pc.any(pc.greater_equal(pc.abs(column), _LONGEST_WHOLE)).as_py()
    )


def line_of(file: str, row: int, *, encoding: str = "utf-8") -> int:
    """Return the line on which a file's nth row stands, both from 1; reads the file, so only for errors."""
    number = 0
    with open_text(file, encoding) as (text, _):
        for block in whole_lines(text, _BLOCK_BYTES):
            for line in block.removesuffix(b"\n").split(b"\n"):
                number += 1
                row -= bool(line.strip())
                if row == 0:
                    return number
    return number + row


def whole_lines(stream: _Readable, block_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
    """Yield blocks of whole lines, about `block_bytes` each."""
    rest = b""
    while block := stream.read(block_bytes):
        lines, newline, rest_of_block = block.rpartition(b"\n")
        if newline:
            yield rest + lines + newline
            rest = rest_of_block
        else:
            rest += block
    if rest.strip():
        yield rest


@contextmanager
def _row_faults(file: str, encoding: str) -> Iterator[None]:
    """Turn bytes that are no text into an error that names the line."""
    try:
        yield
    except MalformedError as fault:
        line = 1 + fault.data[: fault.at].count(b"\n")
        with open_text(file, encoding) as (text, _):
            offset = 0
            while offset < fault.offset and (piece := text.read(_BLOCK_BYTES)[: fault.offset - offset]):
                line += piece.count(b"\n")
                offset += len(piece)
        raise DataError(fault.problem, file=file, row=line, remedy=fault.remedy) from None
