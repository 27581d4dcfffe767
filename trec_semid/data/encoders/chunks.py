"""What every kind of content reads (items in row order) and yields (chunks of vectors).

Legend: N items of the dataset, n items of one chunk, D width.
"""

import difflib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.types as pat

from trec_semid.core.arrays import Array
from trec_semid.core.errors import DataError


class Chunk(NamedTuple):
    """Vectors of the next n items, in row order."""

    vectors: Array
    """(n, D) float; rows of items without this content hold anything."""
    present: Array
    """(n,) bool."""


class Items(NamedTuple):
    """The items to make content for."""

    table: pa.Table
    """N rows in final order, with the columns the configs name."""
    source_rows: Array
    """(N,) int64: the row of each item in the original items file."""
    num_source_rows: int | None = None
    """Rows of the original items file, where known."""
    file: str | None = None
    """The file that error messages name."""
    locate: Callable[[int], tuple[str, int]] | None = None
    """File and row number of a row of the items, where they lie in several files or below blank lines."""

    def spans(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of consecutive chunks of at most `size` items."""
        for start in range(0, len(self.source_rows), size):
            yield start, min(start + size, len(self.source_rows))

    def column(self, name: str, start: int = 0, stop: int | None = None) -> pa.Array:
        """Return (stop - start,) values of a column.

        Raises:
            DataError: the table has no such column.
        """
        if name not in self.table.column_names:
            raise self.fault("missing column", name, remedy=f"The items have: {self._alike(name)}")
        length = None if stop is None else stop - start
        part = self.table[name].slice(start, length).combine_chunks()
        whole = part.combine_chunks() if isinstance(part, pa.ChunkedArray) else part
        return whole.dictionary_decode() if pat.is_dictionary(whole.type) else whole

    def fault(
        self,
        problem: str,
        field: str,
        *,
        item: int | None = None,
        value: object = None,
        remedy: str | None = None,
    ) -> DataError:
        """Return an error that names the file, the item and its row there."""
        file, row = self.file, None
        if item is not None:
            source_row = int(self.source_rows[item])
            file, row = self.locate(source_row) if self.locate else (file, source_row + 1)
            if "item_id" in self.table.column_names:
                problem += f" for item '{self.table['item_id'][item]}'"
        return DataError(problem, file=file, row=row, field=field, value=value, remedy=remedy)

    def _alike(self, name: str) -> str:
        have = self.table.column_names
        return ", ".join(difflib.get_close_matches(name, have, n=3, cutoff=0.3) or have) or "no columns"


def spread(vectors: Array | None, present: Array) -> Iterator[Chunk]:
    """Yield a chunk of all N items from vectors (n, D) of those that `present` (N,) says have content."""
    if vectors is None:
        yield Chunk(np.zeros((len(present), 0), np.float32), present)
        return
    full = np.zeros((len(present), vectors.shape[1]), np.float32)
    full[present] = vectors
    yield Chunk(full, present)
