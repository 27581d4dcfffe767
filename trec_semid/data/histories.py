"""What a user did strictly before an event, as ranges of one sorted array."""

from typing import Literal, NamedTuple, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from trec_semid.core.arrays import Array
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.data.ragged import Ragged
from trec_semid.data.schema import SPLITS, Dataset

Protocol = Literal["online", "frozen"]
"""online: all earlier events, those of valid and test included; frozen: earlier training events only."""


class HistoryConfig(Config):
    """Which earlier events stand in a row's history."""

    max_len: int = Field(50, ge=0)
    """Most recent events that it holds; 0 leaves the history out."""
    events: Literal["positives", "all"] = "positives"
    """`positives`: events with label 1; `all`: whatever the label. Sampled negatives never count."""


class Events(NamedTuple):
    """Columns of events in their order. N events."""

    users: Array
    """(N,) int64 user rows."""
    items: Array
    """(N,) int64 item rows."""
    labels: Array
    """(N,) float32; NaN where unknown."""
    when: Array
    """(N,) int64: timestamp, or order where there are no timestamps."""
    splits: Array
    """(N,) int8: position in `schema.SPLITS`."""
    is_negative: Array
    """(N,) bool: a sampled negative, which never happened."""


def read_events(dataset: Dataset) -> Events:
    """Read the events that ranking needs.

    Raises:
        DataError: the dataset has timestamps but some are missing, or events are out of order.
    """
    clock = "timestamp" if dataset.facts.has_timestamps else "order"
    columns = ["user_row", "item_row", "label", "order", clock, "split", "behaviour"]
    table = dataset.events(list(dict.fromkeys(columns)))
    order = _ints(table, "order")
    if len(order) and (np.diff(order) < 0).any():
        row = int(np.argmax(np.diff(order) < 0)) + 1
        remedy = "Prepare the dataset again: events must be sorted by order"
        raise DataError(
            "events out of order",
            file=dataset.uri,
            row=row + 1,
            field="order",
            value=int(order[row]),
            remedy=remedy,
        )
    if table[clock].null_count:
        row = int(np.argmax(table[clock].is_null().to_numpy()))
        remedy = "Give every event a timestamp, or none"
        raise DataError("missing timestamp", file=dataset.uri, row=row + 1, field=clock, remedy=remedy)
    return Events(
        _ints(table, "user_row"),
        _ints(table, "item_row"),
        table["label"].to_numpy().astype(np.float32),
        _ints(table, clock),
        _split_numbers(table["split"]),
        _is_value(table["behaviour"], "negative"),
    )


def as_of_test(events: Events) -> Events:
    """Return the events with those of validation as training: all that came before those of test."""
    return events._replace(splits=np.where(events.splits == SPLITS.index("valid"), np.int8(0), events.splits))


@final
class HistoryIndex:
    """Eligible events sorted by (user, time, order), searched by composite keys.

    With T = number of distinct times, event e has key user * (T + 1) + rank(time). A row at time t
    asks for keys below user * (T + 1) + #{distinct times < t}, so events of its own time stay out.
    Memory: 16 bytes an eligible event.
    """

    def __init__(self, events: Events, eligible: Array) -> None:
        self._times, ranks = np.unique(events.when[eligible], return_inverse=True)
        self._stride = len(self._times) + 1
        keys = events.users[eligible] * self._stride + ranks
        order = np.argsort(keys, kind="stable")  # events come in order, so ties keep theirs
        self._keys = keys[order]
        self.items = events.items[eligible][order]

    def before(self, users: Array, when: Array, max_len: int) -> Ragged:
        """Return each row's last `max_len` eligible events strictly before it, oldest first.

        Args:
            users: (N,) user rows.
            when: (N,) times on the clock of `Events.when`.
            max_len: longest history.
        """
        first_keys = users * self._stride
        starts = np.searchsorted(self._keys, first_keys)
        ends = np.searchsorted(self._keys, first_keys + np.searchsorted(self._times, when))
        starts = np.maximum(starts, ends - max_len)
        return Ragged(starts, ends - starts, self.items)


def may_stand_in_history(events: Events, config: HistoryConfig) -> Array:
    """Return (N,) bool: which events histories are made of."""
    return ~events.is_negative & (events.labels > 0.5 if config.events == "positives" else True)


def index_histories(events: Events, config: HistoryConfig) -> dict[Protocol, HistoryIndex]:
    """Return the index of each protocol."""
    eligible = may_stand_in_history(events, config)
    is_train = events.splits == 0
    return {
        "online": HistoryIndex(events, eligible),
        "frozen": HistoryIndex(events, eligible & is_train),
    }


def _ints(table: pa.Table, name: str) -> Array:
    return table[name].to_numpy().astype(np.int64, copy=False)


def _is_value(column: pa.ChunkedArray, value: str) -> Array:
    return np.asarray(pc.fill_null(pc.is_in(column.cast(pa.string()), value_set=pa.array([value])), False))  # pyright: ignore[reportAttributeAccessIssue]


def _split_numbers(column: pa.ChunkedArray) -> Array:
    numbers = np.full(len(column), -1, np.int8)
    for number, split in enumerate(SPLITS):
        numbers[_is_value(column, split)] = number
    return numbers
