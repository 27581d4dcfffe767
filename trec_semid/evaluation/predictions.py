"""Predictions of a split: `predictions/<split>-rank-<r>.parquet`, one file per rank.

What follows are the columns of a ranking run; those of a retrieval run are in `target_positions`.

row           int64, position within the split's events, each once over all ranks
user_row      int64
item_row      int64
label         float32, 0 or 1
score         float32, probability; history = all events strictly before (online protocol)
score_frozen  float32, probability; history = training events only (frozen protocol)
"""

import json
import uuid
from types import TracebackType
from typing import NamedTuple, Self, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from trec_semid.core.arrays import Array, Float32s, Ints
from trec_semid.core.errors import DataError, ShapeError
from trec_semid.core.paths import arrow_filesystem, exists, join, make_folder, move, remove
from trec_semid.data.schema import Split

PREDICTION_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("user_row", pa.int64()),
        ("item_row", pa.int64()),
        ("label", pa.float32()),
        ("score", pa.float32()),
        ("score_frozen", pa.float32()),
    ]
)
_FACTS = b"trec_semid"
_GROUP_ROWS = 1 << 17


class Predictions(NamedTuple):
    """All rows of a split, in order of `row`; fields as in the file."""

    row: Ints
    user_row: Ints
    item_row: Ints
    label: Float32s
    score: Float32s
    score_frozen: Float32s


@final
class PredictionWriter:
    """Writes one rank's predictions as they come; the file appears, whole, when the block is left.

    The file says how many ranks wrote and how many rows the split has, so that a reader sees a file
    that is absent, and passes over one that an earlier run with more ranks left behind.
    """

    def __init__(
        self,
        run_uri: str,
        split: Split,
        *,
        rank: int,
        world_size: int,
        num_rows: int,
        schema: pa.Schema = PREDICTION_SCHEMA,
    ) -> None:
        make_folder(join(run_uri, "predictions"))
        self._uri = predictions_uri(run_uri, split, rank)
        self._partial = f"{self._uri}.partial-{uuid.uuid4().hex[:8]}"
        facts = json.dumps({"world_size": world_size, "num_rows": num_rows})
        self._schema = schema.with_metadata({_FACTS: facts.encode()})
        self._waiting: list[pa.RecordBatch] = []
        self._num_waiting = 0
        fs, inner = arrow_filesystem(self._partial)
        self._file = pq.ParquetWriter(inner, self._schema, filesystem=fs)

    def __enter__(self) -> Self:
        return self

    def write(self, **columns: ArrayLike) -> None:
        """Append rows: one (n,) array for each column of the file.

        Raises:
            ShapeError: columns are absent, unknown, or of unequal length.
        """
        if set(columns) != set(self._schema.names):
            expected = ", ".join(self._schema.names)
            raise ShapeError(f"predictions: got columns {', '.join(columns)}, expected {expected}.")
        arrays = [
            pa.array(np.asarray(columns[field.name], field.type.to_pandas_dtype())) for field in self._schema
        ]
        if len({len(array) for array in arrays}) != 1:
            sizes = {name: len(array) for name, array in zip(self._schema.names, arrays, strict=True)}
            raise ShapeError(f"predictions: columns of unequal length (got {sizes}).")
        self._waiting.append(pa.record_batch(arrays, schema=self._schema))
        self._num_waiting += len(arrays[0])
        if self._num_waiting >= _GROUP_ROWS:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flush()
            self._file.close()
            if error is None:
                move(self._partial, self._uri)
        finally:
            remove(self._partial)

    def _flush(self) -> None:
        if self._num_waiting:
            table = pa.Table.from_batches(self._waiting)
            self._file.write_table(table, row_group_size=self._num_waiting)
        self._waiting, self._num_waiting = [], 0


def predictions_uri(run_uri: str, split: Split, rank: int) -> str:
    """Return where a rank's predictions of a split lie."""
    return join(run_uri, "predictions", f"{split}-rank-{rank}.parquet")


def read_predictions(run_uri: str, split: Split) -> Predictions:
    """Read the predictions that all ranks of a ranking run wrote, in order of `row`.

    Raises:
        DataError: as `read_columns`.
    """
    return Predictions(*read_columns(run_uri, split, PREDICTION_SCHEMA))


def count_rows(run_uri: str, split: Split) -> int:
    """Return how many rows the predictions of a split have over all ranks.

    Raises:
        DataError: rank 0's file is absent, unreadable or does not say.
    """
    return _facts(_read(predictions_uri(run_uri, split, 0), []))["num_rows"]


def read_columns(run_uri: str, split: Split, schema: pa.Schema) -> list[Array]:
    """Read (N,) columns of a schema, of which `row` is one, that all ranks of a run wrote, in order of it.

    Raises:
        DataError: a rank's file is absent, unreadable or without a column, or a row of the split is there
            twice or not at all.
    """
    first = _read(predictions_uri(run_uri, split, 0), schema.names)
    facts = _facts(first)
    uris = [predictions_uri(run_uri, split, rank) for rank in range(1, facts["world_size"])]
    table = pa.concat_tables([first, *(_read(uri, schema.names) for uri in uris)])
    rows = table["row"].to_numpy()
    _expect_each_once(rows, facts["num_rows"], predictions_uri(run_uri, split, 0))
    return [_in_order(table[name].to_numpy(), rows) for name in schema.names]


def _facts(table: pa.Table) -> dict[str, int]:
    return json.loads(table.schema.metadata[_FACTS])


def _read(uri: str, names: list[str]) -> pa.Table:
    if not exists(uri):
        remedy = "Run the job to its end on all ranks, or name the right run folder"
        raise DataError("no predictions here", file=uri, remedy=remedy)
    fs, inner = arrow_filesystem(uri)
    try:
        table = pq.read_table(inner, filesystem=fs)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"not a readable Parquet file: {error}", file=uri, remedy="Run again") from None
    absent = [name for name in names if name not in table.column_names]
    if absent:
        raise DataError("missing column", file=uri, field=absent[0], remedy="Run again with this version")
    if _FACTS not in (table.schema.metadata or {}):
        raise DataError("does not say how many ranks wrote", file=uri, remedy="Run again with this version")
    return table.select(names)


def _expect_each_once(rows: Ints, num_rows: int, uri: str) -> None:
    remedy = "Remove the run's predictions and evaluate again"
    outside = (rows < 0) | (rows >= num_rows)
    if outside.any():
        value = int(rows[outside][0])
        raise DataError(f"the split has {num_rows} rows", file=uri, field="row", value=value, remedy=remedy)
    times = np.bincount(rows, minlength=num_rows)
    wrong = np.flatnonzero(times != 1)
    if len(wrong):
        problem = f"row of the split is there {times[wrong[0]]} times ({len(wrong)} such rows)"
        raise DataError(problem, file=uri, field="row", value=int(wrong[0]), remedy=remedy)


def _in_order(values: Array, rows: Ints) -> Array:
    ordered = np.empty_like(values)
    ordered[rows] = values
    return ordered
