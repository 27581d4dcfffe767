"""Content that exists already: an `.npy` file beside the items, or a list column of them."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pyarrow.types as pat
from pydantic import Field

from trec_semid.core.arrays import Array
from trec_semid.core.config import Config, Place
from trec_semid.core.errors import DataError
from trec_semid.core.paths import exists, local_copy
from trec_semid.data.encoders.chunks import Chunk, Items
from trec_semid.data.encoders.columns import is_list, read_mask
from trec_semid.data.encoders.store import Dtype

_CHUNK = 8192
"""Items read at a time."""


class NpyConfig(Config):
    """Vectors in an `.npy` file whose rows are the rows of the items file."""

    kind: Literal["npy"] = "npy"
    file: Place
    """Path or URI of a (rows, D) float16, float32 or float64 array."""
    mask_column: str | None = None
    """Item column that says whether an item has this content (true/false or 1/0, null = no)."""
    zero_is_missing: bool = False
    """Take rows of zeros as missing; otherwise they are refused, as they look like data."""
    dtype: Dtype | None = None
    """How to store it; by default as it is (float64 becomes float32)."""

    @property
    def columns(self) -> list[str]:
        """Item columns it needs."""
        return [self.mask_column] if self.mask_column else []

    @property
    def source(self) -> str:
        """Where the vectors come from."""
        return self.file


class ColumnConfig(Config):
    """Vectors in a list column of the items; null means missing."""

    kind: Literal["column"] = "column"
    column: str = Field(min_length=1)
    """Column of list<float> or fixed-size list<float>."""
    zero_is_missing: bool = False
    """Take vectors of zeros as missing; otherwise they are refused, as they look like data."""
    dtype: Dtype | None = None
    """How to store it; by default as it is (float64 becomes float32)."""

    @property
    def columns(self) -> list[str]:
        """Item columns it needs."""
        return [self.column]

    @property
    def source(self) -> str:
        """Where the vectors come from."""
        return f"column {self.column}"


def in_array(config: NpyConfig, items: Items) -> Items:
    """Return the items, with errors that name rows of the array file."""
    return items._replace(file=config.file, locate=None)


def npy_chunks(config: NpyConfig, items: Items) -> Iterator[Chunk]:
    """Yield the rows of an array file in item order; a local file is memory-mapped.

    Raises:
        DataError: not an array file, another shape or type, another number of rows than the items
            file, or a row of zeros that nothing marks as missing.
    """
    if not exists(config.file):
        raise DataError("no such file", file=config.file, remedy="Check the path under [content]")
    blamed = in_array(config, items)
    with local_copy(config.file) as path:
        array = _open_array(config.file, path)
        _expect_rows(config, array, items)
        for start, stop in items.spans(_CHUNK):
            rows = items.source_rows[start:stop]
            vectors = np.asarray(array[rows])
            present = np.ones(stop - start, bool)
            if config.mask_column:
                present = read_mask(items, config.mask_column, start, stop)
            yield Chunk(vectors, _without_zeros(vectors, present, config, blamed, start))


def column_chunks(config: ColumnConfig, items: Items) -> Iterator[Chunk]:
    """Yield the vectors of a list column.

    Raises:
        DataError: not a list of floats, vectors of unequal length, or a vector of zeros.
    """
    dim = _first_length(config, items)
    for start, stop in items.spans(_CHUNK):
        lists = items.column(config.column, start, stop)
        present = np.asarray(lists.is_valid())
        flat, lengths = _flatten(lists)
        _expect_length(lengths, present, dim, config, items, start)
        vectors = np.zeros((stop - start, dim), flat.dtype)
        vectors[present] = flat.reshape(-1, dim)
        yield Chunk(vectors, _without_zeros(vectors, present, config, items, start))


def _open_array(file: str, path: str) -> Array:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        remedy = "Write it again with numpy.save; it may have been cut off"
        raise DataError(f"not a readable .npy array: {error}", file=file, remedy=remedy) from None
    if not isinstance(array, np.ndarray):
        raise DataError("holds several arrays", file=file, remedy="Write one array with numpy.save")
    if array.ndim != 2 or not array.shape[1]:
        remedy = "Expected (rows of the items file, D)"
        raise DataError("wrong shape", file=file, value=array.shape, remedy=remedy)
    if not np.issubdtype(array.dtype, np.floating):
        remedy = "Expected float16, float32 or float64"
        raise DataError("wrong type of numbers", file=file, value=str(array.dtype), remedy=remedy)
    return array


def _expect_rows(config: NpyConfig, array: Array, items: Items) -> None:
    expected_rows = items.num_source_rows
    least = int(items.source_rows.max(initial=-1)) + 1
    if len(array) < least or (expected_rows is not None and len(array) != expected_rows):
        told = f"{expected_rows:,} rows" if expected_rows is not None else f"at least {least:,} rows"
        whose = items.file or "The items file"
        remedy = f"{whose} has {told}; row i of the array must be its row i"
        raise DataError("row counts disagree", file=config.file, value=len(array), remedy=remedy)


def _without_zeros(
    vectors: Array, present: Array, config: NpyConfig | ColumnConfig, items: Items, start: int
) -> Array:
    """Return which rows are there, once rows of zeros are decided about."""
    zeros = present & ~vectors.any(axis=1)
    if config.zero_is_missing or not zeros.any():
        return present & ~zeros
    masked = isinstance(config, NpyConfig) and config.mask_column
    field = config.column if isinstance(config, ColumnConfig) else (config.mask_column or "")
    if masked:
        remedy = f"Column '{field}' says it is there: mend that column, or also set zero_is_missing = true"
    elif isinstance(config, NpyConfig):
        remedy = "Name the item column that says who has it, mask_column = ..., or set zero_is_missing = true"
    else:
        remedy = "Write null where an item has no vector, or set zero_is_missing = true"
    item = start + int(np.argmax(zeros))
    raise items.fault("a vector of zeros, which has no direction", field, item=item, remedy=remedy)


def _first_length(config: ColumnConfig, items: Items) -> int:
    """Return the length of the first vector; 1 where there is none."""
    kind: Any = items.column(config.column, 0, 0).type
    if not is_list(kind) or not pat.is_floating(kind.value_type):
        remedy = "Expected list<float> or fixed_size_list<float>"
        raise items.fault("not a column of vectors", config.column, value=str(kind), remedy=remedy)
    for start, stop in items.spans(_CHUNK):
        lengths = _flatten(items.column(config.column, start, stop))[1]
        if lengths.any():
            return int(lengths[np.argmax(lengths > 0)])
    return 1


def _expect_length(
    lengths: Array, present: Array, dim: int, config: ColumnConfig, items: Items, start: int
) -> None:
    other = present & (lengths != dim)
    if other.any():
        at = int(np.argmax(other))
        remedy = f"The first vector has {dim} numbers; write null where an item has none"
        raise items.fault(
            "vector of another length", config.column, item=start + at, value=int(lengths[at]), remedy=remedy
        )


def _flatten(lists: Any) -> tuple[Array, Array]:
    """Return the values of the lists that are not null, and each list's length (0 for null)."""
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    if pat.is_fixed_size_list(lists.type):
        return flat, np.where(np.asarray(lists.is_valid()), lists.type.list_size, 0)
    return flat, np.asarray(lists.value_lengths().fill_null(0))
