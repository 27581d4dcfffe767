"""Writing a dataset folder: tables, events, checksum; complete or not at all."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from trec_semid.core.arrays import Array
from trec_semid.core.errors import DataError
from trec_semid.core.paths import (
    arrow_filesystem,
    join,
    make_folder,
    open_file,
    write_bytes,
)
from trec_semid.data.events.timeline import Timeline
from trec_semid.data.fields import SideField
from trec_semid.data.raw.formats.files import first_line, size_of
from trec_semid.data.schema import DESCRIPTION, EVENT_SCHEMA, SPLITS, DatasetFacts, FileFacts
from trec_semid.runtime.disk import full_disk_fault, wording_full_disk
from trec_semid.runtime.fingerprints import data_files, fingerprint, signed_json
from trec_semid.runtime.logs import working

CONFIG = "config.toml"
_ROWS_PER_GROUP = 1 << 18
_ROWS_PER_FILE = 1 << 22
_DELTAS = dict.fromkeys(("user_row", "item_row", "timestamp", "order"), "DELTA_BINARY_PACKED")
"""A third of the size and a quarter of the time of Parquet's default for these."""


@contextmanager
def writing(out: str) -> Iterator[None]:
    """Word what can go wrong while a dataset is written.

    Raises:
        DataError: the disk is full, or the place cannot be written to.
    """
    with wording_full_disk(out, "nothing was written"):
        try:
            yield
        except OSError as error:
            if full_disk_fault(error):
                raise
            problem, remedy = f"cannot be written: {first_line(error)}", "Choose another `out`"
            raise DataError(problem, file=out, remedy=remedy) from None


def write_table(folder: str, name: str, table: pa.Table) -> None:
    """Write one Parquet file below the folder."""
    uri = join(folder, name)
    make_folder(uri.rpartition("/")[0])
    fs, inner = arrow_filesystem(uri)
    pq.write_table(table, inner, filesystem=fs)


def write_entities(
    folder: str, entity: str, ids: pa.Array, readable: Mapping[str, pa.Array], fields: Mapping[str, SideField]
) -> None:
    """Write items.parquet or users.parquet, of (n,) columns, and the vocabulary of every side field."""
    columns: dict[str, Any] = {f"{entity}_id": ids, "row": pa.array(np.arange(len(ids)))}
    columns |= readable
    for name, field in fields.items():
        columns[name] = field.ids
        write_table(folder, f"fields/{entity}_{name}.parquet", field.vocabulary)
    write_table(folder, f"{entity}s.parquet", pa.table(columns))


def write_events(folder: str, timeline: Timeline) -> None:
    """Write events/part-*.parquet in order, several row groups each."""
    num_events = len(timeline.users)
    make_folder(join(folder, "events"))
    with working("write events", num_events) as work:
        for part, first in enumerate(range(0, num_events, _ROWS_PER_FILE)):
            fs, inner = arrow_filesystem(join(folder, "events", f"part-{part:05d}.parquet"))
            with _event_writer(fs, inner) as writer:
                last = min(first + _ROWS_PER_FILE, num_events)
                for start in range(first, last, _ROWS_PER_GROUP):
                    stop = min(start + _ROWS_PER_GROUP, last)
                    writer.write_table(_slice(timeline, start, stop))
                    work.advance(stop - start)


def _event_writer(fs: pafs.FileSystem, path: str) -> pq.ParquetWriter:
    small: Any = ["label", "split", "behaviour"]  # annotated as bool in pyarrow
    return pq.ParquetWriter(path, EVENT_SCHEMA, filesystem=fs, use_dictionary=small, column_encoding=_DELTAS)


def _slice(timeline: Timeline, start: int, stop: int) -> pa.Table:
    rows = slice(start, stop)
    labels = pa.nulls(stop - start, pa.float32())
    if timeline.labels is not None:
        labels = pa.array(timeline.labels[rows], from_pandas=True)  # NaN becomes null
    times = pa.nulls(stop - start, pa.int64())
    if timeline.times is not None:
        times = pa.array(timeline.times[rows])
    columns = [
        pa.array(timeline.users[rows], pa.int64()),
        pa.array(timeline.items[rows], pa.int64()),
        labels,
        times,
        pa.array(timeline.order[rows], pa.int64()),
        _named(timeline.parts[rows], SPLITS),
        _named(timeline.behaviours[rows], timeline.behaviour_names),
    ]
    return pa.table(columns, schema=EVENT_SCHEMA)


def _named(codes: Array, names: tuple[str, ...] | list[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), pa.array(list(names), pa.string()))


def describe_files(folder: str) -> dict[str, FileFacts]:
    """Read every file of the folder but its description, and return sizes, sha256, and rows or shapes."""
    names = [name for name in data_files(folder) if name != DESCRIPTION]
    files: dict[str, FileFacts] = {}
    with working("checksum [bytes]", sum(size_of(join(folder, name)) for name in names)) as work:
        for name in names:
            uri = join(folder, name)
            known = fingerprint(uri)
            rows = _num_rows(uri) if name.endswith(".parquet") else None
            shape = _shape(uri) if name.endswith(".npy") else None
            files[name] = FileFacts(bytes=known.bytes, sha256=known.sha256, rows=rows, shape=shape)
            work.advance(known.bytes)
    return files


def _num_rows(uri: str) -> int:
    fs, inner = arrow_filesystem(uri)
    return pq.read_metadata(inner, filesystem=fs).num_rows


def _shape(uri: str) -> list[int]:
    with open_file(uri) as file:
        version = np.lib.format.read_magic(file)
        reads = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        return list(reads[version](file)[0])


def checksum(files: Mapping[str, FileFacts]) -> str:
    """Return a sha256 over names and contents of all data files, in sorted order.

    The config is left out: it says where the dataset lies, and equal data has equal checksums anywhere.
    """
    lines = [f"{name}\n{files[name].sha256}\n" for name in sorted(files) if name != CONFIG]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_description(folder: str, facts: DatasetFacts) -> None:
    """Write dataset.json, which says that the folder is complete, and its own sha256."""
    write_bytes(join(folder, DESCRIPTION), signed_json(facts.model_dump(mode="json")))
