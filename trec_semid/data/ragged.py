"""Lists of unequal length as two flat arrays, and gathering from them without a Python loop."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from trec_semid.core.arrays import Array


class Ragged(NamedTuple):
    """Row i owns `values[starts[i] : starts[i] + lengths[i]]`; rows may share values."""

    starts: Array
    """(N,) int64."""
    lengths: Array
    """(N,) int64."""
    values: Array

    def take(self, rows: Array) -> tuple[Array, Array]:
        """Return the values of (n,) rows, one row after the other, and their lengths (n,)."""
        lengths = self.lengths[rows]
        return self.values.take(positions(self.starts[rows], lengths)), lengths


def positions(starts: Array, lengths: Array) -> Array:
    """Return starts[0], starts[0] + 1, ... (lengths[0] of them), then those of row 1, and so on.

    Args:
        starts: (n,) first position of each row.
        lengths: (n,) how many positions each row has.
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def ragged_from_arrow(column: pa.ChunkedArray) -> Ragged:
    """Read a list<int> column (a null is an empty list) or an int column (one value a row, null is 0).

    The column's own offsets and values are used; nothing is copied row by row.
    """
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    if not pa.types.is_list(column.type):
        filled: pa.Array = array.fill_null(0)  # pyright: ignore[reportAttributeAccessIssue]
        ones = np.ones(len(array), np.int64)
        return Ragged(np.arange(len(array)), ones, filled.to_numpy(zero_copy_only=False))
    lists: Any = array
    offsets = lists.offsets.to_numpy().astype(np.int64)
    lengths = np.asarray(lists.value_lengths().fill_null(0)).astype(np.int64)
    # `values`, not `flatten()`: offsets of a slice count from the start of the whole array of values.
    return Ragged(offsets[:-1], lengths, lists.values.to_numpy(zero_copy_only=False))
