"""Delimited text: CSV, TSV and files with separators of several characters."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions when it is imported)

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import IO, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from trec_semid.core.errors import DataError
from trec_semid.data.raw.formats.blocks import read_blocks
from trec_semid.data.raw.formats.chunks import Chunk, FileConfig, check_columns
from trec_semid.data.raw.formats.files import reading
from trec_semid.data.raw.formats.rows import (
    LINE_FEED,
    Block,
    Layout,
    count_byte,
    count_rows,
    end_of_row,
    fields_of,
    num_fields,
    row_of_rows,
    rows_of,
)
from trec_semid.data.raw.formats.utf8 import MalformedError, open_text
from trec_semid.runtime.prefetch import prefetch

_BLOCK_BYTES = 1 << 24
_HEAD_BYTES = 1 << 16
_SHOWN = 40
"""Characters of a fault that an error shows."""


def column_names(config: FileConfig, file: str) -> list[str]:
    """Return the column names of a delimited file, in order."""
    if config.header:
        return config.header
    layout = _layout(config, file)
    with reading(file), _row_faults(config, file, layout), open_text(file, config.encoding) as (text, _):
        for block in read_blocks(text, layout, _HEAD_BYTES):
            if header := _header(block.data, layout):
                return fields_of(header[1], layout)
    raise DataError("no header line", file=file, remedy="Write the file again, or name its columns in header")


def read_delimited(config: FileConfig, file: str, columns: list[str] | None) -> Iterator[Chunk]:
    """Stream the rows of one file; every value comes as text, an empty field as an empty text.

    Raises:
        DataError: text that is malformed anywhere, also in columns that are not read; or a missing column.
    """
    names = column_names(config, file)
    check_columns(file, names, columns)
    layout = _layout(config, file)
    with_blanks = partial(_row_with_blanks, config, file)
    with (
        reading(file),
        _row_faults(config, file, layout),
        _blocks_ahead(config, file, layout) as (blocks, stored),
    ):
        row, position = 1, 0
        for block in blocks:
            table = _parse(config, layout, block, names, columns or names)
            _refuse_header_inside(config, layout, block, table, names)
            _refuse_rows_inside(layout, block, table.num_rows, len(names))
            before, position = position, stored.tell()
            if table.num_rows:
                yield Chunk(table, file, row, position - before, with_blanks)
            row += table.num_rows


@contextmanager
def _blocks_ahead(
    config: FileConfig, file: str, layout: Layout
) -> Iterator[tuple[Iterator[Block], IO[bytes]]]:
    """Yield the rows below the header, the next block checked in a thread meanwhile, and the stored file."""
    with open_text(file, config.encoding) as (text, stored):
        ahead = prefetch(read_blocks(text, layout, _BLOCK_BYTES), depth=1)
        try:
            yield ahead if config.header else _below_header(ahead, layout), stored
        finally:
            ahead.close()  # the thread reads the file, so it ends first


def _layout(config: FileConfig, file: str) -> Layout:
    return Layout(config.separator_of(file).encode(), config.quoted, config.encoding)


def _below_header(blocks: Iterator[Block], layout: Layout) -> Iterator[Block]:
    for block in blocks:
        if header := _header(block.data, layout):
            end = header[0]
            rest = Block(block.data[end:], block.offset + end)
            return chain([rest] if rest.data else [], blocks)
    return iter(())


def _header(data: bytes, layout: Layout) -> tuple[int, bytes] | None:
    """Return the first row that is not blank, and where it ends."""
    end = 0
    while (start := end) < len(data):
        end = end_of_row(data, layout, start)
        if row := data[start:end].rstrip(b"\r\n"):
            return end, row
    return None


def _parse(
    config: FileConfig, layout: Layout, block: Block, names: list[str], columns: list[str]
) -> pa.Table:
    # The block is one to Arrow too: its reader loses characters of line ends that lie across two.
    read = pacsv.ReadOptions(block_size=len(block.data) + 1, column_names=names, use_threads=False)
    parse = pacsv.ParseOptions(
        delimiter=layout.mark.decode(),
        quote_char='"' if layout.quoted else False,
        newlines_in_values=layout.quoted,
    )
    convert = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        include_columns=columns,
        null_values=config.null_values,
        strings_can_be_null=bool(config.null_values),
        check_utf8=False,  # checked already, in all columns
    )
    try:
        return pacsv.read_csv(pa.py_buffer(block.data), read, parse, convert)
    except pa.ArrowInvalid as error:
        _refuse_row(block, layout, len(names), error)


def _refuse_row(block: Block, layout: Layout, num_columns: int, error: pa.ArrowInvalid) -> NoReturn:
    for at, row in rows_of(block.data, layout):
        have = num_fields(row, layout)
        if row and have != num_columns:
            problem = f"has {have} fields where {num_columns} columns are named"
            remedy = "Correct the row, or separator, quoted and header in the config"
            raise MalformedError(problem, remedy, offset=block.offset, data=block.data, at=at)
    raise error


def _refuse_header_inside(
    config: FileConfig, layout: Layout, block: Block, table: pa.Table, names: list[str]
) -> None:
    """Refuse a row that says the column names again, as files that were joined carry it."""
    if not _says_names(table):
        return
    for at, row in rows_of(block.data, layout):
        if fields_of(row, layout) == names:
            remedy = "Leave the row out" + (", or header in the config" if config.header else "")
            problem = "the column names stand where values are expected"
            raise MalformedError(problem, remedy, offset=block.offset, data=block.data, at=at)


def _refuse_rows_inside(layout: Layout, block: Block, num_rows: int, num_columns: int) -> None:
    """Refuse a quoted field that swallowed rows: one quote too few there, one too many further down."""
    if not layout.quoted or b'"' not in block.data:
        return
    if count_byte(block.data, LINE_FEED) <= num_rows:
        return
    at = row_of_rows(block.data, layout, num_columns)
    if at >= 0:
        problem = "a quoted field that holds whole rows: a quote is missing or one too many"
        remedy = "Mend the quotes; where the field is meant so, write the table as Parquet or JSON-lines"
        raise MalformedError(problem, remedy, offset=block.offset, data=block.data, at=at)


def _says_names(table: pa.Table) -> bool:
    """Return whether a row has the column's name in every column."""
    alike = np.ones(table.num_rows, bool)
    for name in table.column_names:  # lengths first: they are there already, and rarely fit
        lengths = pc.binary_length(table.column(name)).to_numpy(zero_copy_only=False)
        alike &= lengths == len(name.encode())
        if not alike.any():
            return False
    few = table.filter(pa.array(alike))
    same = [np.asarray(pc.equal(few.column(name), name).fill_null(False)) for name in table.column_names]
    return bool(np.logical_and.reduce(same).any())


@contextmanager
def _row_faults(config: FileConfig, file: str, layout: Layout) -> Iterator[None]:
    """Turn what is wrong at a byte into an error that names the row."""
    try:
        yield
    except MalformedError as fault:
        with open_text(file, config.encoding) as (text, _):
            row = count_rows(text, layout, fault.offset, _BLOCK_BYTES)
        row += sum(1 for _ in rows_of(fault.data[: fault.at] + b"x", layout))
        row -= 0 if config.header else _rows_of_header(config, file, layout)
        problem = fault.problem if row > 0 else f"in the header line: {fault.problem}"
        raise DataError(
            problem, file=file, row=row if row > 0 else None, value=_excerpt(fault), remedy=fault.remedy
        ) from None


def _excerpt(fault: MalformedError) -> str | None:
    """Return some of the line that a fault lies in."""
    begin = max(fault.data.rfind(b"\n", 0, fault.at) + 1, fault.at - _SHOWN // 2)
    text = fault.data[begin : fault.at + _SHOWN].decode(errors="replace")
    return text.partition("\n")[0] or None


def _row_with_blanks(config: FileConfig, file: str, row: int) -> int:
    """Return a row's number with the blank lines before it, the slow way: only ever run for an error."""
    layout = _layout(config, file)
    numbered = 0
    with open_text(file, config.encoding) as (text, _):
        blocks = read_blocks(text, layout, _BLOCK_BYTES)
        for block in blocks if config.header else _below_header(blocks, layout):
            filled = np.array([bool(line) for _, line in rows_of(block.data, layout)])
            if row <= filled.sum():
                return numbered + int(np.flatnonzero(filled)[row - 1]) + 1
            row -= int(filled.sum())
            numbered += len(filled)
    return numbered + row


def _rows_of_header(config: FileConfig, file: str, layout: Layout) -> int:
    """Return the number of rows up to the header, blank ones before it included."""
    with open_text(file, config.encoding) as (text, _):
        try:
            data = text.read(_HEAD_BYTES)
        except MalformedError:
            return 1
    header = _header(data, layout)
    return sum(1 for _ in rows_of(data[: header[0]], layout)) if header else 1
