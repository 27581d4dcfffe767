"""Delimited text: CSV, TSV and files with separators of several characters."""

import csv
import io
import itertools
from collections.abc import Iterator
from functools import partial
from typing import IO, cast

import pyarrow as pa
import pyarrow.csv as pacsv

from trec_semid.core.errors import DataError
from trec_semid.data.raw.chunks import Chunk, FileConfig, check_columns
from trec_semid.data.raw.files import find_inputs, first_line, open_stream, reading

_UNIT_SEPARATOR = "\x1f"
"""Stands in for separators of several characters, which Arrow's reader does not know."""
_BLOCK_BYTES = 1 << 24
_COPY_BYTES = 1 << 20


def column_names(config: FileConfig) -> list[str]:
    """Return the column names of a delimited table's first file, in order."""
    file = find_inputs(config.path)[0]
    with reading(file):
        return _header(config, file)


def read_delimited(config: FileConfig, file: str, columns: list[str] | None) -> Iterator[Chunk]:
    """Stream the rows of one file; every value comes as text, an empty field as an empty text."""
    with reading(file):
        names = _header(config, file)
        check_columns(file, names, columns)
        options = pacsv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            include_columns=columns or names,
            null_values=config.null_values,
            strings_can_be_null=bool(config.null_values),
        )
        with open_stream(file) as (stream, stored):
            try:
                yield from _csv_chunks(config, file, _named(config, stream, file), stored, options)
            except pa.ArrowInvalid as error:
                row, problem = _bad_row(config, file, len(names)) or (None, first_line(error))
                remedy = "Correct the row, or separator, quoted and encoding in the config"
                raise DataError(problem, file=file, row=row, remedy=remedy) from None


def _csv_chunks(
    config: FileConfig, file: str, stream: IO[bytes], stored: IO[bytes], options: pacsv.ConvertOptions
) -> Iterator[Chunk]:
    separator = config.separator_of(file)
    parse = pacsv.ParseOptions(
        delimiter=separator if len(separator.encode()) == 1 else _UNIT_SEPARATOR,
        quote_char='"' if config.quoted else False,
        newlines_in_values=config.quoted,
    )
    read = pacsv.ReadOptions(
        block_size=_BLOCK_BYTES, column_names=config.header, encoding=config.encoding, use_threads=False
    )
    reader = pacsv.open_csv(pa.PythonFile(stream, mode="r"), read, parse, options)
    row, position = 1, 0
    for batch in reader:
        before, position = position, stored.tell()
        table = pa.Table.from_batches([batch])
        yield Chunk(table, file, row, position - before, partial(_row_with_blanks, config, file))
        row += batch.num_rows


def _named(config: FileConfig, stream: IO[bytes], file: str) -> IO[bytes]:
    separator = config.separator_of(file)
    if len(separator.encode()) == 1:
        return stream
    encoded = separator.encode(config.encoding)
    return cast("IO[bytes]", _Replaced(stream, encoded, _UNIT_SEPARATOR.encode()))


def _rows(config: FileConfig, file: str, stream: IO[bytes]) -> Iterator[list[str]]:
    # Decoded line by line: a reader that decodes ahead could not tell which row is at fault.
    lines = (line.decode(config.encoding).removeprefix("\ufeff") for line in stream)
    separator = config.separator_of(file)
    if len(separator) > 1:
        yield from (line.rstrip("\r\n").split(separator) for line in lines)
    else:
        quoting = csv.QUOTE_MINIMAL if config.quoted else csv.QUOTE_NONE
        yield from csv.reader(lines, delimiter=separator, quoting=quoting)


def _header(config: FileConfig, file: str) -> list[str]:
    if config.header:
        return config.header
    with open_stream(file) as (stream, _):
        names = next(_rows(config, file, stream), [])
    return names


def _rows_below_header(config: FileConfig, file: str, stream: IO[bytes]) -> Iterator[list[str]]:
    return itertools.islice(_rows(config, file, stream), 0 if config.header else 1, None)


def _row_with_blanks(config: FileConfig, file: str, row: int) -> int:
    """Return a row's number with the blank lines before it, the slow way: only ever run for an error."""
    with open_stream(file) as (stream, _):
        rows = enumerate(_rows_below_header(config, file, stream), start=1)
        filled = (number for number, fields in rows if fields and fields != [""])
        try:
            return next(itertools.islice(filled, row - 1, None), row)
        except (UnicodeError, csv.Error):
            return row


def _bad_row(config: FileConfig, file: str, num_columns: int) -> tuple[int, str] | None:
    """Find the row that Arrow refused, the slow way: only ever run on a file that is refused."""
    row = 0
    with open_stream(file) as (stream, _):
        try:
            for row, fields in enumerate(_rows_below_header(config, file, stream), start=1):
                if fields and len(fields) != num_columns:
                    return row, f"has {len(fields)} fields where {num_columns} columns are named"
        except (UnicodeError, csv.Error) as error:
            return row + 1, first_line(error)
    return None


class _Replaced(io.RawIOBase):
    """A byte stream with one sequence of bytes replaced by another on the way."""

    def __init__(self, stream: IO[bytes], old: bytes, new: bytes) -> None:
        self._stream, self._old, self._new = stream, old, new
        self._ready, self._rest = b"", b""

    def readable(self) -> bool:
        """Return True: the stream is there to be read."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes after replacement, all that are left where it is negative."""
        while size < 0 or len(self._ready) < size:
            block = self._stream.read(_COPY_BYTES)
            text = (self._rest + block).replace(self._old, self._new)
            # A separator may lie across two blocks: keep back what could be its beginning.
            keep = len(self._old) - 1 if block else 0
            self._ready += text[: len(text) - keep]
            self._rest = text[len(text) - keep :]
            if not block:
                break
        size = len(self._ready) if size < 0 else size
        out, self._ready = self._ready[:size], self._ready[size:]
        return out
