"""Numbers that are stored beside codes: `coefficients.parquet`.

Legend: N items, R positions.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trec_semid.core.arrays import Array
from trec_semid.core.errors import DataError
from trec_semid.core.ids import id_array, rows_of
from trec_semid.core.paths import arrow_filesystem

FILE = "coefficients.parquet"
_TYPES = {np.dtype(np.float16): pa.float16(), np.dtype(np.uint8): pa.uint8()}


class Coefficients(NamedTuple):
    """One number for each code of each item, in row order, as `Tokenizer.coefficients` made them."""

    item_ids: pa.Array
    """(N,) text."""
    values: Array
    """(N, R) float16 or uint8."""

    def save(self, uri: str) -> None:
        """Write `item_id` string and `coefficients`, a list of R float16 or uint8."""
        fs, inner = arrow_filesystem(uri)
        table = coefficient_table(self.item_ids.cast(pa.string()), self.values)
        pq.write_table(table, inner, filesystem=fs)

    @staticmethod
    def load(uri: str, item_ids: pa.Array | None = None) -> "Coefficients":
        """Read a file, and put it into the order of (M,) `item_ids` where given.

        Raises:
            DataError: no such file, not what `save` writes, or an item of `item_ids` that is not in it.
        """
        fs, inner = arrow_filesystem(uri)
        again = "Tokenize again"
        try:
            table = pq.read_table(inner, filesystem=fs)
            ids, column = id_array(table["item_id"]), table["coefficients"].combine_chunks()
            width = column.type.list_size
            values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(ids), width)
        except FileNotFoundError:
            remedy = "Only tokenizers with tokenizer.coefficients other than 'none' write it"
            raise DataError("no coefficients here", file=uri, remedy=remedy) from None
        except (KeyError, AttributeError, ValueError, pa.ArrowException) as error:
            raise DataError(f"damaged: {error}", file=uri, remedy=again) from None
        if item_ids is None:
            return Coefficients(ids, values)
        rows = rows_of(item_ids, ids)
        if (rows < 0).any():
            absent = item_ids[int(np.argmax(rows < 0))].as_py()
            raise DataError("item has no coefficients", file=uri, field="item_id", value=absent, remedy=again)
        return Coefficients(item_ids, values[rows])


def coefficient_schema(bits: int, num_positions: int) -> pa.Schema:
    """Return the columns of a file whose numbers have so many bits; 4 take a byte, and less where packed."""
    kind = pa.float16() if bits == 16 else pa.uint8()
    return pa.schema([("item_id", pa.string()), ("coefficients", pa.list_(kind, num_positions))])


def coefficient_table(item_ids: pa.Array | pa.ChunkedArray, values: Array) -> pa.Table:
    """Return (n,) items with their (n, R) numbers as the file has them."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), _TYPES[values.dtype])
    lists = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table({"item_id": item_ids, "coefficients": lists})
