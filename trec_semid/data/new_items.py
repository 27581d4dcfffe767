"""New items as they come, beside those that have semantic IDs: ids and vectors, checked value by value.

Nothing is read whole: rows come in batches, and of an item that is known already only hashes stay.

Legend: B rows of a batch, N items with semantic IDs, D width of a modality.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trec_semid.core.arrays import Array, Flags, Float32s, Ints
from trec_semid.core.errors import DataError
from trec_semid.core.hashing import Hashes, tuple_keys
from trec_semid.core.paths import arrow_filesystem, make_folder, parent_of
from trec_semid.data.encoders.narrow import narrow
from trec_semid.data.raw.columns import Where, as_ids
from trec_semid.data.raw.formats.chunks import Chunk, check_columns
from trec_semid.data.raw.formats.files import reading
from trec_semid.data.raw.formats.parts import Part, to_read, with_partitions
from trec_semid.data.schema import Dataset

_ID_ROWS = 1 << 16


class Existing(NamedTuple):
    """Items that have semantic IDs already."""

    file: str
    ids: Hashes
    """(N,) hashes of their ids."""
    keys: Hashes
    """(N,) of their tuples, as `core.hashing.tuple_keys`."""


def read_parquet(parts: Sequence[Part], columns: Sequence[str], batch_rows: int) -> Iterator[Chunk]:
    """Stream rows, so many at a time, with the columns that partition folders name.

    Raises:
        DataError: a file is missing, truncated, damaged, no Parquet file, or lacks a column.
    """
    for file, said in ((part.file, part.partitions) for part in parts):
        fs, inner = arrow_filesystem(file)
        # pyarrow's default pre_buffer keeps all row groups that were read until the file is closed.
        with (
            reading(file),
            pq.ParquetFile(
                inner, filesystem=fs, pre_buffer=False, page_checksum_verification=True
            ) as parquet,
        ):
            have = parquet.schema_arrow.names
            check_columns(file, [*have, *(name for name in said if name not in have)], columns)
            row = 1
            for batch in parquet.iter_batches(batch_rows, columns=to_read(columns, have, said)):
                if batch.num_rows:
                    yield with_partitions(Chunk(pa.Table.from_batches([batch]), file, row, 0), said)
                row += batch.num_rows


def write_items(dataset: Dataset, rows: Ints, uri: str) -> None:
    """Write ids and content of (n,) items of a dataset in the form in which `assign` reads new ones."""
    columns: dict[str, pa.Array] = {"item_id": dataset.item_ids.take(pa.array(rows))}
    for name, facts in dataset.facts.modalities.items():
        vectors = np.ascontiguousarray(dataset.content(name)[rows], np.float32)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), facts.dim)
        is_there = pa.array(np.asarray(dataset.content_mask(name)[rows]))
        columns[name] = pc.call_function(
            "if_else", [is_there, lists.cast(pa.list_(pa.float32())), pa.scalar(None, pa.list_(pa.float32()))]
        )
    make_folder(parent_of(uri))
    fs, inner = arrow_filesystem(uri)
    pq.write_table(pa.table(columns), inner, filesystem=fs)


def read_existing(file: str, sizes: Sequence[int], *, has_slots: bool = False) -> Existing:
    """Read a map as hashes: 16 bytes an item.

    Args:
        file: Parquet with `item_id` and `codes`, which states its codebook sizes.
        sizes: R codebook sizes of the tokenizer.
        has_slots: whether the map has one more position, which tells items of one tuple apart.

    Raises:
        DataError: no such file, or a map of other codebooks than the tokenizer's.
    """
    ids: list[Hashes] = [np.zeros(0, np.uint64)]
    keys: list[Hashes] = [np.zeros(0, np.uint64)]
    for chunk in read_parquet([Part(file, "")], ["item_id", "codes"], _ID_ROWS):
        stated = (chunk.table.schema.metadata or {}).get(b"codebook_sizes", b"").decode()
        own = stated.rpartition(",")[0] if has_slots else stated
        codes: Any = chunk.table.column("codes").combine_chunks()
        flat = codes.flatten().to_numpy(zero_copy_only=False)
        num_positions = len(sizes) + has_slots
        if own != ",".join(map(str, sizes)) or len(flat) != chunk.table.num_rows * num_positions:
            remedy = (
                f"The tokenizer beside it gives codes of sizes {tuple(sizes)}: tokenize again, with "
                "collisions = 'keep', since an extra code is not the tokenizer's to give"
            )
            raise DataError(
                "map of other codebooks", file=file, field="codebook_sizes", value=stated, remedy=remedy
            )
        ids.append(_hashes(as_ids(chunk.table.column("item_id"), Where(chunk.origins, "item_id"))))
        keys.append(tuple_keys(flat.reshape(-1, num_positions)[:, : len(sizes)], sizes))
    return Existing(file, np.concatenate(ids), np.concatenate(keys))


def check_ids(parts: Sequence[Part], column: str, existing: Existing) -> int:
    """Return the number of new items, each id there once and new.

    Reads the id column alone, so that a fault costs no encoding. Memory: 8 bytes an item.

    Raises:
        DataError: an id is missing, occurs twice, or is that of an existing item; or there are no rows.
    """
    hashes = [_hashes(ids) for _, ids in _ids(parts, column)]
    if not hashes:
        raise DataError("no rows", file=parts[0].file, remedy="Write it again or correct the path")
    new = np.concatenate(hashes)
    # Sorted, equal hashes lie side by side: no tree of Python strings.
    together = np.sort(np.concatenate([existing.ids, new]))
    repeated = np.unique(together[1:][together[1:] == together[:-1]])
    if len(repeated):
        _refuse_repeated(parts, column, existing, repeated)
    return len(new)


def _refuse_repeated(parts: Sequence[Part], column: str, existing: Existing, repeated: Hashes) -> None:
    """Look again at the few ids whose hashes met, as two different ones may have met by chance."""
    seen: dict[str, tuple[str, int]] = {}
    for places, name in (([Part(existing.file, "")], "item_id"), (parts, column)):
        for chunk, ids in _ids(places, name):
            for index in np.flatnonzero(np.isin(_hashes(ids), repeated)).tolist():
                item, row = ids[index].as_py(), chunk.first_row + index
                if item in seen:
                    first_file, first_row = seen[item]
                    known = first_file == existing.file
                    raise DataError(
                        f"duplicate item id, first seen in {first_file}, row {first_row}",
                        file=chunk.file,
                        row=row,
                        field=name,
                        value=item,
                        remedy="It has a semantic ID already: leave the row out"
                        if known
                        else "Keep one row for each item",
                    )
                seen[item] = (chunk.file, row)


def read_vectors(chunk: Chunk, name: str, dim: int) -> tuple[Float32s, Flags]:
    """Return a modality's vectors of a batch; null means that an item does not have the modality.

    Args:
        chunk: B rows.
        name: of the column.
        dim: D, which the tokenizer reads.

    Returns:
        (B, D), zeros where an item has none; and (B,) whether it has one.

    Raises:
        DataError: not a column of vectors, another width, a value that is null, NaN or infinite, or a
            vector of zeros.
    """
    column: Any = chunk.table.column(name).combine_chunks()
    vectors = np.zeros((chunk.table.num_rows, dim), np.float32)
    if pa.types.is_null(column.type):
        return vectors, np.zeros(len(vectors), bool)
    _expect_lists(chunk, name, column.type)
    present = np.asarray(column.is_valid())
    flat, lengths = column.flatten(), _lengths(column)
    wrong = present & (lengths != dim)
    if wrong.any():
        row = int(np.argmax(wrong))
        told = f"The tokenizer reads {dim} numbers; write null where an item has none"
        raise _fault("vector of another width", chunk, name, row, int(lengths[row]), told)
    values = flat.to_numpy(zero_copy_only=False)
    given = values.reshape(-1, dim)
    bad = ~np.isfinite(given)
    if bad.any():
        at_row, at = (int(index) for index in np.argwhere(bad)[0])
        row, value = int(np.flatnonzero(present)[at_row]), flat[at_row * dim + at].as_py()
        told = "Mend the value, or write null for the whole vector"
        raise _fault(f"not a finite number in dimension {at}", chunk, name, row, str(value), told)
    vectors[present] = narrow(given, np.dtype(np.float32))
    zeros = present & ~vectors.any(axis=1)
    if zeros.any():
        told = "Write null where an item has no vector"
        raise _fault(
            "a vector of zeros, which has no direction", chunk, name, int(np.argmax(zeros)), None, told
        )
    return vectors, present


def _expect_lists(chunk: Chunk, name: str, kind: Any) -> None:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type):
        remedy = "Expected list<float> or fixed_size_list<float>"
        raise DataError(
            "not a column of vectors", file=chunk.file, field=name, value=str(kind), remedy=remedy
        )


def _lengths(column: Any) -> Array:
    """Return the length of each list, 0 for null."""
    if pa.types.is_fixed_size_list(column.type):
        return np.where(np.asarray(column.is_valid()), column.type.list_size, 0)
    return np.asarray(column.value_lengths().fill_null(0))


def _fault(problem: str, chunk: Chunk, name: str, index: int, value: object, remedy: str) -> DataError:
    row = chunk.first_row + index
    return DataError(problem, file=chunk.file, row=row, field=name, value=value, remedy=remedy)


def _ids(parts: Sequence[Part], column: str) -> Iterator[tuple[Chunk, pa.Array]]:
    for chunk in read_parquet(parts, [column], _ID_ROWS):
        yield chunk, as_ids(chunk.table.column(column), Where(chunk.origins, column))


def _hashes(ids: pa.Array) -> Hashes:
    return pl.Series(pl.from_arrow(ids)).hash(seed=0).to_numpy()
