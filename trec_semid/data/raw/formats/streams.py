"""Parquet, delimited text and JSON-lines as streams of Arrow tables; nothing is inferred from text."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from trec_semid.core.errors import DataError
from trec_semid.core.paths import arrow_filesystem
from trec_semid.data.raw.formats.chunks import Chunk, FileConfig, check_columns
from trec_semid.data.raw.formats.delimited import column_names, read_delimited
from trec_semid.data.raw.formats.files import reading, size_of
from trec_semid.data.raw.formats.json_lines import json_keys, read_json_lines
from trec_semid.data.raw.formats.parts import Part, find_parts, to_read, with_partitions
from trec_semid.runtime.logs import working

_ROWS = 1 << 19


def read_chunks(
    config: FileConfig, columns: Sequence[str] | None, *, work: str, repeating: Sequence[str] = ()
) -> Iterator[Chunk]:
    """Stream the rows of a table with progress over its bytes.

    Args:
        config: where and how it is written.
        columns: columns to read, None for all.
        work: what the progress bar says.
        repeating: text columns with many equal values, which Parquet may give as dictionaries.

    Raises:
        DataError: a file is missing, truncated, damaged, empty, or lacks a column.
    """
    parts = find_parts(config.path)
    _expect_one_format(config, parts)
    needed = None if columns is None else list(dict.fromkeys(columns))
    with working(f"{work} [bytes]", sum(size_of(part.file) for part in parts)) as bar:
        rows = 0
        for part in parts:
            for chunk in _read_part(config, part, needed, repeating):
                rows += chunk.table.num_rows
                yield chunk
                bar.advance(chunk.stored_bytes)
        if rows == 0:
            raise DataError("no rows", file=config.path, remedy="Write it again or correct the path")


def _expect_one_format(config: FileConfig, parts: list[Part]) -> None:
    first, *others = [(part.file, config.format_of(part.file)) for part in parts]
    for file, form in others:
        if form != first[1]:
            remedy = "Name the files of one format by a pattern such as FOLDER/**/*.parquet"
            raise DataError(f"{form} beside {first[1]} ({first[0]})", file=file, remedy=remedy)


def _read_part(
    config: FileConfig, part: Part, needed: list[str] | None, repeating: Sequence[str]
) -> Iterator[Chunk]:
    said = part.partitions
    if not said:
        yield from _read_file(config, part.file, needed, repeating)
        return
    with reading(part.file):
        asked = (
            None if needed is None else to_read(needed, _columns(config, part.file, [*needed, *said]), said)
        )
        for chunk in _read_file(config, part.file, asked, repeating):
            whole = with_partitions(chunk, said)
            yield whole if needed is None else whole._replace(table=whole.table.select(needed))


def _columns(config: FileConfig, file: str, candidates: list[str]) -> list[str]:
    """Return the columns of a file; of JSON lines, at least those of the candidates that are there."""
    form = config.format_of(file)
    if form == "parquet":
        fs, inner = arrow_filesystem(file)
        return pq.read_schema(inner, filesystem=fs).names
    return json_keys(file, candidates, config.encoding) if form == "jsonl" else column_names(config, file)


def _read_file(
    config: FileConfig, file: str, columns: list[str] | None, repeating: Sequence[str]
) -> Iterator[Chunk]:
    form = config.format_of(file)
    if form == "parquet":
        return _read_parquet(file, columns, repeating)
    if form == "jsonl":
        return read_json_lines(file, columns, config.encoding)
    return read_delimited(config, file, columns)


def _read_parquet(file: str, columns: list[str] | None, repeating: Sequence[str]) -> Iterator[Chunk]:
    fs, inner = arrow_filesystem(file)
    with reading(file):
        with pq.ParquetFile(inner, filesystem=fs) as described:
            schema, num_rows = described.schema_arrow, described.metadata.num_rows
        check_columns(file, schema.names, columns)
        texts = [
            name for name in repeating if name in schema.names and pa.types.is_string(schema.field(name).type)
        ]
        size, row = size_of(file), 1
        with pq.ParquetFile(inner, filesystem=fs, read_dictionary=texts) as parquet:
            for batch in parquet.iter_batches(_ROWS, columns=columns):
                batch.validate(full=True)  # Arrow takes text that is no UTF-8 from a file as it is
                share = size * batch.num_rows // num_rows
                yield Chunk(pa.Table.from_batches([batch]), file, row, share)
                row += batch.num_rows
