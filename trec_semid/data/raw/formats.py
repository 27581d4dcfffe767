"""Parquet, delimited text and JSON-lines as streams of Arrow tables; nothing is inferred from text."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from trec_semid.core.errors import DataError
from trec_semid.core.logs import working
from trec_semid.core.paths import arrow_filesystem
from trec_semid.data.raw.chunks import Chunk, FileConfig, check_columns
from trec_semid.data.raw.delimited import read_delimited
from trec_semid.data.raw.files import find_inputs, reading, size_of
from trec_semid.data.raw.json_lines import read_json_lines

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
    files = find_inputs(config.path)
    wanted = None if columns is None else list(dict.fromkeys(columns))
    with working(f"{work} [bytes]", sum(size_of(file) for file in files)) as bar:
        rows = 0
        for file in files:
            for chunk in _read_file(config, file, wanted, repeating):
                rows += chunk.table.num_rows
                yield chunk
                bar.advance(chunk.stored_bytes)
        if rows == 0:
            raise DataError("no rows", file=config.path, remedy="Write it again or correct the path")


def _read_file(
    config: FileConfig, file: str, columns: list[str] | None, repeating: Sequence[str]
) -> Iterator[Chunk]:
    form = config.format_of(file)
    if form == "parquet":
        return _read_parquet(file, columns, repeating)
    if form == "jsonl":
        return read_json_lines(file, columns)
    return read_delimited(config, file, columns)


def _read_parquet(file: str, columns: list[str] | None, repeating: Sequence[str]) -> Iterator[Chunk]:
    fs, inner = arrow_filesystem(file)
    with reading(file):
        with pq.ParquetFile(inner, filesystem=fs) as described:
            schema, num_rows = described.schema_arrow, described.metadata.num_rows
        check_columns(file, schema.names, columns)
        texts = [name for name in repeating if pa.types.is_string(schema.field(name).type)]
        size, row = size_of(file), 1
        with pq.ParquetFile(inner, filesystem=fs, read_dictionary=texts) as parquet:
            for batch in parquet.iter_batches(_ROWS, columns=columns):
                batch.validate(full=True)  # Arrow takes text that is no UTF-8 from a file as it is
                share = size * batch.num_rows // num_rows
                yield Chunk(pa.Table.from_batches([batch]), file, row, share)
                row += batch.num_rows
