"""Ranking rows in files: a row has all that a ranker reads of it, so that no other event is needed.

rows/<split>/part-*.parquet    row (int64), its place among the events of its split; user_row, item_row
(int32); label (float32); history (list<int32>), its last `max_len` training events before it, oldest first;
history_online, the same of all events before it, not in train

Rows of train are dealt to files by lot, so that a row group is a sample of them. Those of valid and test
stand in the order of events. How many training events users and items have, sampled negatives left out, is
in `rows/train_counts/<entity>s.parquet` (events, int64, in row order).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PositiveInt

from trec_semid.core.arrays import Array
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.core.paths import arrow_filesystem, join, make_folder
from trec_semid.core.seeds import numpy_generator
from trec_semid.data.histories import Events, HistoryConfig, Protocol, index_histories
from trec_semid.data.ragged import Ragged, ragged_from_arrow
from trec_semid.data.ranking.rows import RankingRows
from trec_semid.data.schema import SPLITS, Dataset, RowFacts, Split, reading
from trec_semid.runtime.logs import working

_COLUMNS: dict[Protocol, str] = {"frozen": "history", "online": "history_online"}
_FORM: dict[str, Any] = {
    # Rows by lot repeat too little for a dictionary of them. Of what is small this is read fastest.
    "use_dictionary": False,
    "compression": "lz4",
    "column_encoding": {f"{name}.list.element": "DELTA_BINARY_PACKED" for name in _COLUMNS.values()},
}
_COUNTS = "rows/train_counts/{}s.parquet"


class RowsConfig(Config):
    """Rows that `rank` streams, beside the events."""

    history: HistoryConfig = HistoryConfig.model_validate({})
    """What stands in a row's history; `rank` may read a shorter one."""
    rows_per_group: PositiveInt = 1 << 16
    """Rows that are read at a time."""
    rows_per_file: PositiveInt = 1 << 20

    def facts(self) -> RowFacts:
        """Return what the dataset says of them."""
        return RowFacts(max_len=self.history.max_len, events=self.history.events)


class RowGroup(NamedTuple):
    """A row group of a file, or a stretch of it."""

    file: str
    """Its URI."""
    number: int
    """Within the file."""
    num_rows: int
    first: int = 0
    """Row of the group where the stretch begins."""


def write_rows(
    folder: str, events: Events, config: RowsConfig, *, num_users: int, num_items: int, seed: int, file: str
) -> None:
    """Write the rows of all splits below a dataset folder.

    Args:
        folder: of the dataset.
        events: all of them, in order.
        config: which histories, and how many rows lie together.
        num_users: of the dataset.
        num_items: of the dataset.
        seed: of the lot by which rows of train are dealt.
        file: where the events come from, for errors.

    Raises:
        DataError: an event has no label.
    """
    if np.isnan(events.labels).any():
        row = int(np.argmax(np.isnan(events.labels)))
        remedy = "Rows for ranking need a label each: state a label rule, or leave [rows] out"
        raise DataError("event without a label", file=file, row=row + 1, field="label", remedy=remedy)
    indexes = index_histories(events, config.history)
    with working("write rows", len(events.users)) as work:
        for number, split in enumerate(SPLITS):
            chosen = np.flatnonzero(events.splits == number)
            places = np.arange(len(chosen))
            if split == "train":
                places = numpy_generator(seed, "rows of train").permutation(len(chosen))
            protocols: tuple[Protocol, ...] = ("frozen",) if split == "train" else ("frozen", "online")
            make_folder(join(folder, "rows", split))
            for part, first in enumerate(range(0, len(chosen), config.rows_per_file)):
                of_file = places[first : first + config.rows_per_file]
                fs, inner = arrow_filesystem(join(folder, "rows", split, f"part-{part:05d}.parquet"))
                with pq.ParquetWriter(inner, _schema(protocols), filesystem=fs, **_FORM) as to:
                    for start in range(0, len(of_file), config.rows_per_group):
                        rows = of_file[start : start + config.rows_per_group]
                        own = chosen[rows]
                        users, when = events.users[own], events.when[own]
                        columns = [rows, users, events.items[own], events.labels[own]]
                        histories = [
                            _lists(indexes[each].before(users, when, config.history.max_len))
                            for each in protocols
                        ]
                        to.write_table(_table(columns, histories, protocols))
                        work.advance(len(rows))
    is_train = (events.splits == 0) & ~events.is_negative
    for entity, of_events, size in (("user", events.users, num_users), ("item", events.items, num_items)):
        uri = join(folder, _COUNTS.format(entity))
        make_folder(uri.rpartition("/")[0])
        fs, inner = arrow_filesystem(uri)
        counts = np.bincount(of_events[is_train], minlength=size)
        pq.write_table(pa.table({"events": pa.array(counts, pa.int64())}), inner, filesystem=fs)


@final
class RowFiles:
    """Reads the rows of a dataset, a row group at a time."""

    def __init__(self, dataset: Dataset, history: HistoryConfig) -> None:
        """Look which histories the rows have.

        Args:
            dataset: with rows.
            history: that is asked for: of the same events, and no longer.

        Raises:
            DataError: the dataset has no rows, or other histories.
        """
        facts = dataset.facts.rows
        if facts is None:
            remedy = "Prepare it with a [rows] section, or leave [stream] out and hold all events in memory"
            raise DataError(
                "this dataset has no rows to stream", file=dataset.uri, field="rows", remedy=remedy
            )
        if history.max_len > facts.max_len or (history.max_len and history.events != facts.events):
            problem = f"its rows have histories of {facts.max_len} {_named(facts.events)}"
            asked = f"{history.max_len} {_named(history.events)}"
            remedy = (
                f'Set history = {{ max_len = {facts.max_len}, events = "{facts.events}" }} or a shorter one, '
                "or prepare the dataset with another rows.history"
            )
            raise DataError(problem, file=dataset.uri, field="history", value=asked, remedy=remedy)
        self._dataset, self._max_len = dataset, history.max_len

    def num_rows(self, split: Split) -> int:
        """Return how many rows a split has."""
        files = self._dataset.facts.files
        return sum(files[name].rows or 0 for name in self._names(split))

    def groups(self, split: Split) -> list[RowGroup]:
        """Return the row groups of a split in order, which reads the foot of every file."""
        groups: list[RowGroup] = []
        for uri in (join(self._dataset.uri, name) for name in self._names(split)):
            fs, inner = arrow_filesystem(uri)
            with reading(uri):
                foot = pq.read_metadata(inner, filesystem=fs)
            groups += [RowGroup(uri, at, foot.row_group(at).num_rows) for at in range(foot.num_row_groups)]
        return groups

    def read(self, group: RowGroup, protocol: Protocol) -> RankingRows:
        """Return the rows of a group, with histories under a protocol."""
        names = ["row", "user_row", "item_row", "label"]
        names += [_COLUMNS[protocol]] if self._max_len else []
        fs, inner = arrow_filesystem(group.file)
        with reading(group.file), pq.ParquetFile(inner, filesystem=fs) as file:
            table = file.read_row_group(group.number, columns=names, use_threads=False)
        table = table.slice(group.first, group.num_rows)
        row, users, items, labels = (table[name].to_numpy() for name in names[:4])
        histories = _last(ragged_from_arrow(table[names[4]]), self._max_len) if self._max_len else None
        return RankingRows(users, items, labels, histories, row)

    def labels(self, split: Split) -> Iterator[tuple[Array, Array]]:
        """Yield user rows (n,) and labels (n,) of a split, group by group."""
        for group in self.groups(split):
            fs, inner = arrow_filesystem(group.file)
            with reading(group.file), pq.ParquetFile(inner, filesystem=fs) as file:
                table = file.read_row_group(group.number, columns=["user_row", "label"])
            yield table["user_row"].to_numpy(), table["label"].to_numpy()

    def _names(self, split: Split) -> list[str]:
        return sorted(name for name in self._dataset.facts.files if name.startswith(f"rows/{split}/"))

    def train_counts(self) -> tuple[Array, Array]:
        """Return how many training events each user (num_users,) and each item (num_items,) has."""
        facts = self._dataset.facts
        users = self._dataset.table(_COUNTS.format("user"), ["events"], facts.num_users)
        items = self._dataset.table(_COUNTS.format("item"), ["events"], facts.num_items)
        return users["events"].to_numpy(), items["events"].to_numpy()


def _named(events: str) -> str:
    return "positives" if events == "positives" else "events of any label"


def _schema(protocols: tuple[Protocol, ...]) -> pa.Schema:
    fields: list[tuple[str, Any]] = [
        ("row", pa.int64()),
        ("user_row", pa.int32()),
        ("item_row", pa.int32()),
        ("label", pa.float32()),
    ]
    return pa.schema([*fields, *((_COLUMNS[each], pa.list_(pa.int32())) for each in protocols)])


def _table(columns: list[Array], histories: list[pa.Array], protocols: tuple[Protocol, ...]) -> pa.Table:
    schema = _schema(protocols)
    plain = [pa.array(column, kind) for column, kind in zip(columns, schema.types[:4], strict=True)]
    return pa.table([*plain, *histories], schema=schema)


def _lists(histories: Ragged) -> pa.Array:
    values, lengths = histories.take(np.arange(len(histories.lengths)))
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.int32()))


def _last(lists: Ragged, max_len: int) -> Ragged:
    """Return the last `max_len` values of each list."""
    lengths = np.minimum(lists.lengths, max_len)
    return Ragged(lists.starts + lists.lengths - lengths, lengths, lists.values)
