"""Ids of items and users as Arrow columns: looked up, ordered and written out without a Python object an id.

Forty million ids are 600 MB in a column and more than 3 GB as a list of `str` with a dict from id to row.

Legend: N and M ids.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trec_semid.core.arrays import Flags, Ints

_CHUNK_IDS = 65_536


def id_array(ids: Iterable[str] | pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return (N,) ids as one stretch of text, the form in which two columns can be compared.

    Offsets of 64 bits, as 40 M ids can pass the 2 GiB of text that those of 32 bits reach.

    Raises:
        pyarrow.ArrowInvalid: the bytes of an id are not UTF-8, as in a damaged file.
    """
    column: Any = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids, pa.large_string())
    column = column.cast(pa.large_string())
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    column.validate(full=True)  # Arrow trusts what files say of their text
    return column


def rows_of(ids: pa.Array, among: pa.Array) -> Ints:
    """Return (N,) the row of each id in the other column, -1 where it has none; null is a value like others.

    Args:
        ids: (N,), in any order.
        among: (M,), each value once.
    """
    rows = pc.call_function("index_in", [ids], pc.SetLookupOptions(value_set=among))
    return pc.call_function("coalesce", [rows, pa.scalar(-1, pa.int32())]).to_numpy(False).astype(np.int64)


def is_repeated(ids: pa.Array) -> Flags:
    """Return (N,) which ids stand in an earlier row too."""
    numbers = ids.dictionary_encode().indices.to_numpy(False)  # in order of first appearance
    repeated = np.ones(len(ids), bool)
    repeated[np.unique(numbers, return_index=True)[1]] = False
    return repeated


def in_id_order(ids: pa.Array) -> Ints:
    """Return (N,) the rows in the order of their ids: by code points, as Python orders text."""
    return pc.call_function("array_sort_indices", [ids]).to_numpy(False).astype(np.int64)


def ids_as_json(ids: pa.Array) -> Iterator[bytes]:
    """Yield what `json.dumps(ids.to_pylist())` returns of (N,) ids, in pieces."""
    yield b"["
    for start in range(0, len(ids), _CHUNK_IDS):
        piece: list[Any] = ids.slice(start, _CHUNK_IDS).to_pylist()
        yield (", " if start else "").encode() + json.dumps(piece)[1:-1].encode()
    yield b"]"
