"""Interactions as compact columns: streamed in, ids replaced by integers on the way."""

from collections.abc import Iterable
from datetime import date
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import field_validator, model_validator

from trec_semid.core.arrays import Array, Flags, Ints
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.data.raw.columns import Where, as_ids, as_integers
from trec_semid.data.raw.formats.chunks import Chunk, Origins, locate
from trec_semid.data.raw.ratings import Ratings, as_ratings, join_ratings
from trec_semid.data.raw.time_patterns import check_pattern
from trec_semid.data.raw.times import Times, TimeUnit, as_times, join_times

_MAX_BEHAVIOURS = 100
_ENCODED = pa.dictionary(pa.int32(), pa.string())


class EventColumns(Config):
    """Which column of the interactions means what; what is not named is not read."""

    user: str
    item: str
    rating: str | None = None
    """A number the label rule judges."""
    timestamp: str | None = None
    timestamp_unit: TimeUnit = "s"
    """Of times that are numbers; fractions of it are read exactly."""
    timestamp_format: str | None = None
    """Pattern of Python's strptime for text, or numbers like 20240131. In UTC unless it has %z."""
    timestamp_range: tuple[date, date] | None = None
    """First and last day that a time may have; None is 1990-01-01 to tomorrow. Others are refused: they are
    most often of another unit."""
    order: str | None = None
    """Position in the user's sequence (any increasing whole number); used where there are no timestamps,
    and between equal timestamps under the tie rule 'published'."""
    behaviour: str | None = None
    """Kind of event: impression, click, ..."""

    @field_validator("timestamp_format")
    @classmethod
    def _is_readable(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            check_pattern(pattern)
        return pattern

    @field_validator("timestamp_range")
    @classmethod
    def _is_in_order(cls, days: tuple[date, date] | None) -> tuple[date, date] | None:
        if days and days[0] > days[1]:
            raise ValueError("the first day is after the last")
        return days

    @model_validator(mode="after")
    def _defines_a_sequence(self) -> "EventColumns":
        if self.timestamp is None and self.order is None:
            raise ValueError("map a timestamp or an order column: without one there is no sequence")
        return self

    def names(self) -> list[str]:
        """Return the mapped columns."""
        named = (self.user, self.item, self.rating, self.timestamp, self.order, self.behaviour)
        return [name for name in named if name is not None]


class RawEvents(NamedTuple):
    """Interactions in source order. Legend: n events."""

    users: Array
    """(n,) int32 into `user_ids`."""
    items: Array
    """(n,) int32 into `item_ids`."""
    ratings: Ratings | None
    times: Times | None
    positions: Array | None
    """(n,) int64."""
    behaviours: Array | None
    """(n,) int32 into `behaviour_names`."""
    user_ids: pa.Array
    item_ids: pa.Array
    behaviour_names: list[str]
    origins: Origins
    """First event, file and row number of every chunk that was read."""
    rows: Array | None = None
    """(n,) which of the events that were read these are; None where they are all."""

    @property
    def file(self) -> str | None:
        """The first file that was read, for errors that concern all of them."""
        return self.origins[0][1] if self.origins else None

    def locate(self, event: int) -> tuple[str, int]:
        """Return the file and row an event came from."""
        return locate(self.origins, event if self.rows is None else int(self.rows[event]))

    def select(self, chosen: Flags) -> "RawEvents":
        """Return the events that are true among (n,), as if there had never been others.

        Ids and behaviours are numbered by first appearance among these.
        """
        users, user_ids = _renumbered(self.users[chosen], self.user_ids)
        items, item_ids = _renumbered(self.items[chosen], self.item_ids)
        behaviours, names = None, self.behaviour_names
        if self.behaviours is not None:
            behaviours, kinds = _renumbered(self.behaviours[chosen], pa.array(names, pa.string()))
            names = kinds.to_pylist()
        return RawEvents(
            users,
            items,
            self.ratings and self.ratings._replace(codes=self.ratings.codes[chosen]),
            self.times and self.times._replace(values=self.times.values[chosen]),
            None if self.positions is None else self.positions[chosen],
            behaviours,
            user_ids,
            item_ids,
            names,
            self.origins,
            np.flatnonzero(chosen) if self.rows is None else self.rows[chosen],
        )


def _renumbered(codes: Array, texts: pa.Array) -> tuple[Array, pa.Array]:
    """Return (n,) codes by first appearance, and the texts that they stand for."""
    used, first = np.unique(codes, return_index=True)
    order = np.argsort(first)
    numbers = np.zeros(len(texts), np.int32)
    numbers[used[order]] = np.arange(len(used))
    return numbers[codes], texts.take(pa.array(used[order]))


class _Codes:
    """A column of text as integers, counted by first appearance."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []

    def add(self, column: pa.ChunkedArray, where: Where) -> None:
        """Append a chunk of the column; a null or an empty text is refused with its file and row."""
        self._chunks += _encode(column, where)

    def finish(self) -> tuple[Array, pa.Array]:
        """Return (n,) int32 codes of all rows and the texts they stand for; the chunks are let go."""
        joined = pa.chunked_array(self._chunks, _ENCODED).unify_dictionaries()
        self._chunks.clear()
        codes = np.concatenate([chunk.indices.to_numpy() for chunk in joined.chunks])
        texts = joined.chunk(joined.num_chunks - 1).dictionary
        used = np.bincount(codes, minlength=len(texts)) > 0
        if used.all():
            return codes, texts
        # A file can bring values along that no row has.
        return (np.cumsum(used) - 1).astype(np.int32)[codes], texts.filter(pa.array(used))


def _encode(column: pa.ChunkedArray, where: Where) -> list[pa.Array]:
    """Keep the dictionaries that Parquet has already, where they hold nothing that must be refused."""
    if pa.types.is_dictionary(column.type) and pa.types.is_string(column.type.value_type):
        clean = [chunk.null_count == 0 and chunk.dictionary.null_count == 0 for chunk in column.chunks]
        if all(clean) and not any(pc.index(chunk.dictionary, "").as_py() >= 0 for chunk in column.chunks):
            return column.cast(_ENCODED).chunks
    return [as_ids(column, where).dictionary_encode()]


def collect_events(chunks: Iterable[Chunk], columns: EventColumns) -> RawEvents:
    """Read all interactions into compact columns.

    Memory: 8 bytes an event for the ids, 4 for a rating and 8 for each distinct one, 8 for a time, 8 for a
    position, once more while the pieces are joined.

    Raises:
        DataError: a value does not fit its column.
    """
    users, items, behaviours = _Codes(), _Codes(), _Codes()
    ratings: list[Ratings] = []
    times: list[Times] = []
    positions: list[Ints] = []
    origins: Origins = []
    num_events = 0
    for chunk in chunks:
        if chunk.table.num_rows == 0:
            continue
        origins += chunk.origins_from(num_events)
        num_events += chunk.table.num_rows
        users.add(*_column(chunk, columns.user))
        items.add(*_column(chunk, columns.item))
        if columns.rating:
            ratings.append(as_ratings(*_column(chunk, columns.rating)))
        if columns.timestamp:
            times.append(_times(chunk, columns, columns.timestamp))
        if columns.order:
            positions.append(as_integers(*_column(chunk, columns.order)))
        if columns.behaviour:
            behaviours.add(*_column(chunk, columns.behaviour))
    user_codes, user_ids = users.finish()
    item_codes, item_ids = items.finish()
    kinds, kind_ids = behaviours.finish() if columns.behaviour else (None, pa.array([], pa.string()))
    return RawEvents(
        user_codes,
        item_codes,
        join_ratings(ratings) if ratings else None,
        _joined_times(times, columns, origins) if times else None,
        _joined(positions),
        kinds,
        user_ids,
        item_ids,
        _few(kind_ids.to_pylist(), columns, origins),
        origins,
    )


def _column(chunk: Chunk, name: str) -> tuple[pa.ChunkedArray, Where]:
    return chunk.table.column(name), Where(chunk.origins, name)


def _times(chunk: Chunk, columns: EventColumns, name: str) -> Times:
    column, where = _column(chunk, name)
    unit, pattern = columns.timestamp_unit, columns.timestamp_format
    return as_times(column, where, unit, pattern=pattern, days=columns.timestamp_range)


def _joined_times(pieces: list[Times], columns: EventColumns, origins: Origins) -> Times:
    try:
        return join_times(pieces)
    except OverflowError:
        problem = "times too far apart for the unit that holds all of them exactly"
        remedy = "Round them, or narrow timestamp_range"
        raise DataError(problem, file=origins[0][1], field=columns.timestamp, remedy=remedy) from None


def _joined(pieces: list[Array]) -> Array | None:
    if not pieces:
        return None
    whole = np.concatenate(pieces)
    pieces.clear()
    return whole


def _few(names: list[str], columns: EventColumns, origins: Origins) -> list[str]:
    if len(names) > _MAX_BEHAVIOURS:
        remedy = "Map a column that names kinds of events"
        raise DataError(
            f"{len(names)} different behaviours", file=origins[0][1], field=columns.behaviour, remedy=remedy
        )
    return names
