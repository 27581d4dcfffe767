"""JSON objects, one a line."""

import io
import json
from collections.abc import Iterator
from typing import IO

import polars as pl
import pyarrow as pa

from trec_semid.core.errors import DataError
from trec_semid.data.raw.chunks import Chunk
from trec_semid.data.raw.files import first_line, open_stream, reading

_BLOCK_BYTES = 1 << 24


def read_json_lines(file: str, columns: list[str] | None) -> Iterator[Chunk]:
    """Stream JSON objects; with `columns` every value comes as text, without them as it is in the file."""
    schema = None if columns is None else dict.fromkeys(columns, pl.String)
    row, position = 1, 0
    with reading(file), open_stream(file) as (stream, stored):
        for block in whole_lines(stream):
            try:
                frame = pl.read_ndjson(io.BytesIO(block), schema=schema, infer_schema_length=None)
            except pl.exceptions.PolarsError as error:
                raise _bad_line(block, file, row, error) from None
            before, position = position, stored.tell()
            yield Chunk(_arrow(frame), file, row, position - before)
            row += frame.height


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


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
                return DataError("not a JSON object", file=file, row=row, remedy=remedy)
        except (ValueError, RecursionError) as problem:
            return DataError(f"not JSON: {first_line(problem)}", file=file, row=row, remedy=remedy)
    return DataError(f"not readable as JSON lines: {first_line(error)}", file=file, remedy=remedy)
