"""Questions of a batch job from Parquet, and its answers as Parquet: a piece at a time, whoever answers it.

A piece is a row group of one input file, and one file of answers: what that holds depends neither on how many
ranks answer nor on which.

Legend: B rows of a batch, n items of a list.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions when it is imported)

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trec_semid.core.arrays import Array
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.core.paths import arrow_filesystem
from trec_semid.data.raw.columns import Where, as_ids, as_text
from trec_semid.data.raw.formats.chunks import Chunk, check_columns
from trec_semid.data.raw.formats.files import reading
from trec_semid.data.raw.formats.parts import Part
from trec_semid.serving.engine import Filters, RankAnswer, RankAsked, RetrieveAnswer, RetrieveAsked, Search


class AskedColumns(Config):
    """Which columns of the input say what."""

    user: str | None = "user_id"
    """Of the user; null, or a user whom the bundle does not know, is nobody known."""
    history: str | None = None
    """Lists of item ids, oldest first; null, or no such column, takes the bundle's history of the user."""
    item: str | None = None
    """To give a probability to: one item a row."""
    candidates: str | None = None
    """The same: a list of items a row."""
    keep: tuple[str, ...] = ()
    """Columns that the answers have, too."""

    @property
    def asks_for_scores(self) -> bool:
        """Whether items are given, and their probabilities asked for."""
        return self.item is not None or self.candidates is not None

    def names(self) -> list[str]:
        """Return every column that is read, each once."""
        named = (self.user, self.history, self.item, self.candidates)
        return list(dict.fromkeys([*(name for name in named if name is not None), *self.keep]))


class Piece(NamedTuple):
    """A row group of one file."""

    file: str
    group: int
    first_row: int
    """Number of its first row in the file, from 1."""
    num_rows: int


def find_pieces(parts: Sequence[Part], columns: AskedColumns) -> list[Piece]:
    """Return every piece of the input, in its order; contents are not read.

    Raises:
        DataError: a file is no Parquet file, or lacks a column.
    """
    pieces: list[Piece] = []
    for part in parts:
        with _opened(part.file) as parquet:
            check_columns(part.file, parquet.schema_arrow.names, columns.names())
            row = 1
            for group in range(parquet.num_row_groups):
                num_rows = parquet.metadata.row_group(group).num_rows
                pieces += [Piece(part.file, group, row, num_rows)] if num_rows else []
                row += num_rows
    return pieces


def read_piece(piece: Piece, columns: AskedColumns, batch_rows: int) -> Iterator[Chunk]:
    """Stream the rows of a piece, at most so many at a time.

    Raises:
        DataError: the file is damaged.
    """
    with reading(piece.file), _opened(piece.file) as parquet:
        row = piece.first_row
        for batch in parquet.iter_batches(batch_rows, row_groups=[piece.group], columns=columns.names()):
            yield Chunk(pa.Table.from_batches([batch]), piece.file, row, 0)
            row += batch.num_rows


def lists_asked(
    chunk: Chunk, columns: AskedColumns, *, n: int, filters: Filters, search: Search | None
) -> list[RetrieveAsked]:
    """Return a question for a list of n items of each row.

    Raises:
        DataError: a user or history that is none; names its row.
    """
    users, histories = _users(chunk, columns), _histories(chunk, columns)
    return [
        RetrieveAsked(user, history, n, filters, search)
        for user, history in zip(users, histories, strict=True)
    ]


class ScoresAsked(NamedTuple):
    """Questions for probabilities; rows of one user one after another are one question."""

    asked: list[RankAsked]
    num_scores: Array
    """(B,) candidates of each row."""


def scores_asked(chunk: Chunk, columns: AskedColumns) -> ScoresAsked:
    """Return what is to be given probabilities, in the order of rows.

    Raises:
        DataError: a user, history or candidate that is none; names its row.
    """
    users, histories = _users(chunk, columns), _histories(chunk, columns)
    if columns.candidates is not None:
        lists = _lists(chunk, columns.candidates)
        rows = [tuple(each or ()) for each in lists]
        asked = [
            RankAsked(user, history, {}, each)
            for user, history, each in zip(users, histories, rows, strict=True)
        ]
        return ScoresAsked(asked, np.array([len(each) for each in rows], np.int64))
    assert columns.item is not None, "one of the two is asked for"
    column = chunk.table.column(columns.item)
    items = as_ids(column, Where(chunk.origins, columns.item)).to_pylist()
    starts = [
        row
        for row in range(len(items))
        if not row or users[row] != users[row - 1] or histories[row] != histories[row - 1]
    ]
    asked = [
        RankAsked(users[start], histories[start], {}, tuple(items[start:stop]))
        for start, stop in zip(starts, [*starts[1:], len(items)], strict=True)
    ]
    return ScoresAsked(asked, np.ones(len(items), np.int64))


def table_of_lists(chunk: Chunk, columns: AskedColumns, answers: Sequence[RetrieveAnswer]) -> pa.Table:
    """Return the lists (B rows) of a batch: columns that are kept, `items`, `scores` and `basis`."""
    lengths = np.array([len(answer.items) for answer in answers], np.int64)
    items = pa.array([item for answer in answers for item in answer.items], pa.string())
    none = np.zeros(0, np.float32)
    scores = np.concatenate([none, *(answer.scores for answer in answers)])
    said = {
        "items": _as_lists(items, lengths),
        "scores": _as_lists(pa.array(scores, pa.float32()), lengths),
        "basis": pa.array([answer.basis for answer in answers], pa.string()),
    }
    return pa.table({**_kept(chunk, columns), **said})


def table_of_scores(
    chunk: Chunk, columns: AskedColumns, asked: ScoresAsked, answers: Sequence[RankAnswer]
) -> pa.Table:
    """Return the probabilities of a batch, row by row: columns that are kept, `score` or `scores`, `basis`.

    An item that the bundle does not have has null.
    """
    none = np.zeros(0, np.float32)
    flat = pa.array(np.concatenate([none, *(answer.scores for answer in answers)]), pa.float32())
    known = pc.if_else(pc.is_nan(flat), pa.scalar(None, pa.float32()), flat)
    if columns.candidates is not None:
        bases = [answer.basis for answer in answers]
        said = {"scores": _as_lists(known, asked.num_scores), "basis": pa.array(bases, pa.string())}
    else:
        lengths = [len(answer.scores) for answer in answers]
        bases = np.repeat(np.array([answer.basis for answer in answers], object), lengths)
        said = {"score": known, "basis": pa.array(bases, pa.string())}
    return pa.table({**_kept(chunk, columns), **said})


def _kept(chunk: Chunk, columns: AskedColumns) -> dict[str, pa.ChunkedArray]:
    names = [*(name for name in (columns.user, columns.item) if name is not None), *columns.keep]
    return {name: chunk.table.column(name) for name in dict.fromkeys(names)}


def _as_lists(flat: pa.Array, lengths: Array, is_null: pa.Array | None = None) -> pa.LargeListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat, mask=is_null)


def _users(chunk: Chunk, columns: AskedColumns) -> list[str | None]:
    if columns.user is None:
        return [None] * chunk.table.num_rows
    text = as_text(chunk.table.column(columns.user), Where(chunk.origins, columns.user))
    return text.to_list()


def _histories(chunk: Chunk, columns: AskedColumns) -> list[tuple[str, ...] | None]:
    if columns.history is None:
        return [None] * chunk.table.num_rows
    return [None if each is None else tuple(each) for each in _lists(chunk, columns.history)]


def _lists(chunk: Chunk, name: str) -> list[list[str] | None]:
    """Return the item ids of each row; None of null.

    Raises:
        DataError: no column of lists of ids, or an id is missing.
    """
    column: Any = chunk.table.column(name).combine_chunks()
    if pa.types.is_null(column.type):
        return [None] * len(column)
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    kind = column.type.value_type if is_list else column.type
    if not is_list or not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
    ):
        remedy = "Expected list<string>, or a list of whole numbers"
        raise DataError(
            "not a column of lists of ids",
            file=chunk.file,
            field=name,
            value=str(column.type),
            remedy=remedy,
        )
    ids = column.flatten().cast(pa.string())
    wrong = pc.fill_null(pc.equal(ids, ""), True)
    if pc.any(wrong).as_py():
        lengths = np.asarray(column.value_lengths().fill_null(0))
        at = int(np.flatnonzero(np.asarray(wrong))[0])
        row = chunk.first_row + int(np.searchsorted(lengths.cumsum(), at, side="right"))
        remedy = "Leave it out of the list"
        raise DataError("an id of this list is missing", file=chunk.file, row=row, field=name, remedy=remedy)
    # Lists of a slice may begin anywhere in its values: as text they get offsets of their own.
    lists = _as_lists(ids, np.asarray(column.value_lengths().fill_null(0)), pc.invert(column.is_valid()))
    return pl.Series(pl.from_arrow(lists)).to_list()


def _opened(file: str) -> pq.ParquetFile:
    fs, inner = arrow_filesystem(file)
    # pyarrow's default pre_buffer keeps all row groups that were read until the file is closed.
    with reading(file):
        return pq.ParquetFile(inner, filesystem=fs, pre_buffer=False, page_checksum_verification=True)
