"""Codes of items as a Parquet file has them, ours or anybody's: checked, the first wrong value named.

Legend: N items, R positions.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trec_semid.core.arrays import Array, Int32s
from trec_semid.core.errors import DataError
from trec_semid.core.ids import id_array, is_repeated
from trec_semid.core.paths import arrow_filesystem

SIZES_KEY = b"codebook_sizes"
"""Of a file's metadata: the codes of each position, with commas between."""
SEAL_KEY, ORIGIN_KEY = b"seal", b"computed_from"
"""Of the metadata of files that we write: a seal of the content, and what it was computed from, as JSON."""
MAX_UNSTATED_SIZE, MAX_UNSTATED_PER_ITEM = 65_536, 16
"""A codebook beyond both, the second times N, has to be stated: its table would be mostly rows of no item."""
_MAX_SIZE = int(np.iinfo(np.int32).max)


class ItemCodes(NamedTuple):
    """What a file says."""

    item_ids: pa.Array
    """(N,) text."""
    codes: Int32s
    """(N, R) int32."""
    sizes: tuple[int, ...]
    """Codebook size of each position: the file's, or the largest code and one where it states none."""
    metadata: Mapping[bytes, bytes]
    """What the file says besides."""


def read_codes(uri: str) -> ItemCodes:
    """Read the columns `item_id` and `codes`.

    Raises:
        DataError: no such file, other columns, ids that are no text or not there once each, codes that are no
            whole numbers, tuples of no or of unequal length, codes outside their codebook, stated sizes that
            do not fit, or unstated ones far beyond the number of items.
    """
    table = _read(uri, ("item_id", "codes"), "Make one with: trec-semid tokenize CONFIG.toml")
    item_ids = _item_ids(table["item_id"], uri)
    codes = _tuples(table["codes"], uri)
    num_positions = codes.shape[1]
    sizes = stated_sizes(table.schema.metadata, uri, num_positions) or _sizes_of(codes, uri)
    _expect_inside(codes, sizes, uri)
    return ItemCodes(item_ids, codes.astype(np.int32, copy=False), sizes, table.schema.metadata or {})


def read_ids(uri: str) -> pa.Array:
    """Read the column `item_id` alone: (N,) text, each once.

    Raises:
        DataError: no such file or column, or ids that are no text or not there once each.
    """
    return _item_ids(_read(uri, ("item_id",), "Write the ids there, a row for each item")["item_id"], uri)


def stated_sizes(
    metadata: Mapping[bytes, bytes] | None, uri: str, num_positions: int | None = None
) -> tuple[int, ...]:
    """Return the codebook sizes that a file's metadata state; none where they state none.

    Args:
        metadata: of the file.
        uri: its place, for errors.
        num_positions: R, where it is known.

    Raises:
        DataError: they are no list of sizes, or not one for each position.
    """
    text = (metadata or {}).get(SIZES_KEY, b"").decode(errors="replace")
    words = [word.strip() for word in text.split(",")] if text else []
    example = ",".join(["256"] * (num_positions or 3))
    remedy = f"State a whole number for each position, as {SIZES_KEY.decode()} = '{example}', or leave it out"
    if not all(word.isdecimal() and len(word) <= 10 and 1 <= int(word) <= _MAX_SIZE for word in words):
        raise DataError("not codebook sizes", file=uri, field=SIZES_KEY.decode(), value=text, remedy=remedy)
    if words and num_positions not in (None, len(words)):
        problem = f"codebook sizes of {len(words)} for {num_positions} positions"
        raise DataError(problem, file=uri, field=SIZES_KEY.decode(), value=text, remedy=remedy)
    return tuple(map(int, words))


def _read(uri: str, columns: Sequence[str], remedy: str) -> pa.Table:
    fs, inner = arrow_filesystem(uri)
    try:
        table = pq.read_table(inner, filesystem=fs)
        absent = {*columns} - set(table.column_names)
    except FileNotFoundError:
        raise DataError("no such file", file=uri, remedy=remedy) from None
    except (pa.ArrowException, OSError, ValueError) as error:  # a name that is not UTF-8 is a ValueError
        raise DataError(f"not a readable Parquet file: {error}", file=uri) from None
    if absent:
        remedy = f"Write the columns {' and '.join(columns)}" if len(columns) > 1 else f"Write {columns[0]}"
        raise DataError("missing column", file=uri, field=sorted(absent)[0], remedy=remedy)
    if not table.num_rows:
        raise DataError("no items", file=uri, remedy="Write a row for every item of the dataset")
    return table


def _item_ids(column: pa.ChunkedArray, uri: str) -> pa.Array:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not is_text:
        remedy = "Write ids as text, as in items.parquet of the dataset"
        raise DataError("wrong type", file=uri, field="item_id", value=str(column.type), remedy=remedy)
    _refuse_nulls(column, uri, "item_id", "Give every row its item")
    try:
        ids = id_array(column)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"damaged: an id is not text: {error}", file=uri, field="item_id") from None
    repeated = is_repeated(ids)
    if repeated.any():
        row = int(np.argmax(repeated))
        item, remedy = ids[row].as_py(), "Keep one row of each item"
        raise DataError("duplicate item", file=uri, row=row + 1, field="item_id", value=item, remedy=remedy)
    return ids


def _tuples(column: pa.ChunkedArray, uri: str) -> Array:
    """Return (N, R) integers of the column's own width."""
    kind = column.type
    remedy = "Write codes as list<int32>: for every item a list of whole numbers from 0"
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list:
        raise DataError("wrong type", file=uri, field="codes", value=str(kind), remedy=remedy)
    _refuse_nulls(column, uri, "codes", "Give every item its codes")
    num_positions = _num_positions(pc.call_function("list_value_length", [column]).to_numpy(), uri)
    if not pa.types.is_integer(kind.value_type):
        raise DataError("wrong type", file=uri, field="codes", value=str(kind), remedy=remedy)
    flat = pc.call_function("list_flatten", [column])
    _refuse_nulls(flat, uri, "codes", "Give every position a code", num_positions)
    return flat.to_numpy().reshape(-1, num_positions)


def _num_positions(lengths: Array, uri: str) -> int:
    first = int(lengths[0])
    if not first:
        remedy = "Give every item a code at least"
        raise DataError("a semantic ID without codes", file=uri, row=1, field="codes", remedy=remedy)
    if (lengths != first).any():
        row = int(np.argmax(lengths != first))
        problem = f"semantic IDs must all have the same length: {first} codes in row 1, {lengths[row]} here"
        remedy = "Give every item as many codes"
        raise DataError(problem, file=uri, row=row + 1, field="codes", remedy=remedy)
    return first


def _refuse_nulls(column: pa.ChunkedArray, uri: str, field: str, remedy: str, each: int = 1) -> None:
    """Refuse a value that is not there, of which a row has so many."""
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy())) // each
        raise DataError("missing value", file=uri, row=row + 1, field=field, remedy=remedy)


def _sizes_of(codes: Array, uri: str) -> tuple[int, ...]:
    """Return the largest code of each position and one; hashes, say, are refused."""
    sizes = tuple(int(code) + 1 for code in codes.max(0))
    limit = max(MAX_UNSTATED_SIZE, MAX_UNSTATED_PER_ITEM * len(codes))
    for position, size in enumerate(sizes):
        if size > limit:
            remedy = (
                f"Position {position} would have a table of {size + 1:,} rows for {len(codes):,} items: "
                f"number its codes from 0 without gaps, or state {SIZES_KEY.decode()} in the file's metadata"
            )
            raise DataError(
                "code far beyond the number of items",
                file=uri,
                row=int(codes[:, position].argmax()) + 1,
                field="codes",
                value=size - 1,
                remedy=remedy,
            )
    return sizes


def _expect_inside(codes: Array, sizes: tuple[int, ...], uri: str) -> None:
    outside = (codes < 0) | (codes > np.asarray(sizes))
    if not outside.any():
        return
    row, position = (int(index[0]) for index in np.nonzero(outside))
    value, limit = int(codes[row, position]), sizes[position]
    remedy = f"Position {position} has {limit} codes and {limit} as its 'missing' code"
    if value < 0:
        remedy = "Codes are numbered from 0"
    raise DataError(
        "code outside its codebook", file=uri, row=row + 1, field="codes", value=value, remedy=remedy
    )
