"""JSON objects, one a line."""

import io
import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import IO

import polars as pl
import pyarrow as pa

from trec_semid.core.errors import DataError
from trec_semid.data.raw.chunks import Chunk, check_columns
from trec_semid.data.raw.files import first_line, open_stream, reading

_BLOCK_BYTES = 1 << 24
_FEW_LINES = 1000


def read_json_lines(file: str, columns: list[str] | None) -> Iterator[Chunk]:
    """Stream JSON objects; with `columns` every value comes as text, without them as it is in the file.

    A key may be left out of any line, but one of `columns` that no line has is refused.
    """
    schema = None if columns is None else dict.fromkeys(columns, pl.String)
    row, position = 1, 0
    with reading(file):
        if columns:
            check_columns(file, _keys(file, set(columns)), columns)
        with open_stream(file) as (stream, stored):
            for block in whole_lines(stream):
                try:
                    frame = pl.read_ndjson(io.BytesIO(block), schema=schema, infer_schema_length=None)
                except pl.exceptions.PolarsError as error:
                    raise _bad_line(block, file, row, error) from None
                before, position = position, stored.tell()
                yield Chunk(_arrow(frame, file), file, row, position - before, partial(line_of, file))
                row += frame.height


def line_of(file: str, row: int) -> int:
    """Return the line on which a file's nth row stands, both from 1; reads the file, so only for errors."""
    with open_stream(file) as (stream, _):
        lines = (number for number, line in enumerate(stream, start=1) if line.strip())
        return next(islice(lines, row - 1, None), row)


def _keys(file: str, wanted: set[str]) -> list[str]:
    """Return the keys of a file's objects, or of its first ones where these have all that is wanted."""
    keys: dict[str, None] = {}
    with open_stream(file) as (stream, _):
        for line in islice(stream, _FEW_LINES):
            keys |= dict.fromkeys(_keys_of_line(line))
            if wanted <= keys.keys():
                return list(keys)
        for block in whole_lines(stream):
            try:
                keys |= dict.fromkeys(pl.read_ndjson(io.BytesIO(block), infer_schema_length=None).columns)
            except pl.exceptions.PolarsError:  # values of mixed types, or a bad line, told when it is read
                keys |= dict.fromkeys(key for line in block.splitlines() for key in _keys_of_line(line))
            if wanted <= keys.keys():
                break
    return list(keys) or list(wanted)  # no rows: another error


def _keys_of_line(line: bytes) -> list[str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return []
    return list(record) if isinstance(record, dict) else []


def _arrow(frame: pl.DataFrame, file: str) -> pa.Table:
    for name in _names(pl.Struct(frame.schema)):
        if "\0" in name:  # polars would panic: Arrow hands names on as C strings
            raise DataError(
                f"a key holds a NUL character: {name!r}", file=file, remedy="Give it another name"
            )
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def _names(kind: object) -> Iterator[str]:
    """Yield the names of all fields of a type, at any depth."""
    if isinstance(kind, pl.List):
        yield from _names(kind.inner)
    elif isinstance(kind, pl.Struct):
        for field in kind.fields:
            yield field.name
            yield from _names(field.dtype)


def whole_lines(stream: IO[bytes], block_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
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


def _bad_line(block: bytes, file: str, first_row: int, error: Exception) -> DataError:
    remedy = "Every line must be one JSON object"
    lines = (line for line in block.splitlines() if line.strip())
    for row, line in enumerate(lines, start=first_row):
        try:
            if not isinstance(json.loads(line), dict):
                return DataError("not a JSON object", file=file, row=line_of(file, row), remedy=remedy)
        except (ValueError, RecursionError) as problem:
            at = line_of(file, row)
            return DataError(f"not JSON: {first_line(problem)}", file=file, row=at, remedy=remedy)
    return DataError(f"not readable as JSON lines: {first_line(error)}", file=file, remedy=remedy)
