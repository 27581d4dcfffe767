"""The dataset folder: what `prepare` writes and everything else reads.

dataset.json            counts, modalities, fields, split, ties, label, source, every file with size and
                        sha256, checksum; signed by its own sha256; written last
items.parquet           item_id (string), row (int64, = position), side fields
users.parquet           user_id (string), row, side fields
fields/<entity>_<field>.parquet    id (int32), value (string): the vocabulary of a side field,
from id 1 on; id 0 means missing or unknown
content/<modality>.npy  (num_items, dim) float16 or float32, row order of items.parquet
content/<modality>.mask.npy        (num_items,) bool, True where the item has this content
events/part-*.parquet   user_row, item_row (int64), label (float32 or null), timestamp (int64 since 1970,
exact in the `timestamp_unit` of dataset.json; or null), order (int64), split (train | valid | test),
behaviour; sorted by order. Sampled negatives (label 0, behaviour 'negative') follow their positive and repeat
its timestamp, order and split.
rows/                   where asked for: rows that a ranker streams, see `ranking.row_files`
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Annotated, Any, Literal, final

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pydantic import ValidationError

from trec_semid.core.arrays import Array
from trec_semid.core.config import Config, Place
from trec_semid.core.errors import DataError
from trec_semid.core.identity import MayChange
from trec_semid.core.ids import id_array
from trec_semid.core.paths import arrow_filesystem, is_local, join, local_copy, read_bytes
from trec_semid.data.raw.times import TimeUnit
from trec_semid.runtime.fingerprints import Fingerprint, Verify, check_files, read_signed, verify

SCHEMA_VERSION = 2
DESCRIPTION = "dataset.json"
Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
EVENT_SCHEMA = pa.schema(
    [
        ("user_row", pa.int64()),
        ("item_row", pa.int64()),
        ("label", pa.float32()),
        ("timestamp", pa.int64()),
        ("order", pa.int64()),
        ("split", pa.dictionary(pa.int8(), pa.string())),
        ("behaviour", pa.dictionary(pa.int8(), pa.string())),
    ]
)


class VerifyConfig(Config):
    """How a verb checks the datasets that it reads."""

    verify: Annotated[Verify, MayChange()] = "once"
    """Contents are read and compared with their sha256 once, and again when a file's size or time changes; or
    `always`. Sizes and row counts are checked each time."""


class DatasetConfig(VerifyConfig):
    """What every verb that works on one dataset reads."""

    dataset: Annotated[Place, MayChange()]
    """Dataset folder."""


class FieldFacts(Config):
    """A side field of items or users, stored as ids: 0 means missing or unknown, 1.. are values."""

    kind: Literal["category", "number"]
    size: int
    """Number of ids, the 0 included."""
    is_list: bool = False
    """Whether one entity can have several values; the column is then list<int32>, else int32."""


class ModalityFacts(Config):
    """A content vector per item."""

    dim: int
    dtype: Literal["float16", "float32"]
    present: int
    """Number of items that have this content."""
    source: str
    """Where the vectors come from: file and column, or encoder and its weights."""


class SplitFacts(Config):
    """Sizes of one part and how much of it training never saw."""

    events: int
    users: int
    items: int
    unseen_users: int
    """Users of this part without a training event."""
    unseen_items: int
    unseen_item_events: int
    """Events of this part on items without a training event."""
    positives: int | None = None
    negatives: int = 0
    """Of `events`: sampled, not observed. All other counts are over what was observed."""


class FileFacts(Fingerprint):
    """One file of the folder."""

    rows: int | None = None
    """Of a table."""
    shape: list[int] | None = None
    """Of an array."""


class RowCounts(Config):
    """Numbers of events, and of different items and users."""

    events: int = 0
    items: int = 0
    users: int = 0


class SimilarIds(Config):
    """Ids that differ from another one by blanks, invisible characters or Unicode form alone."""

    ids: int
    """How many do."""
    examples: list[list[str]]
    """Some of them, those that look alike together."""


class RowFacts(Config):
    """What stands in the histories of `rows/`."""

    max_len: int
    events: Literal["positives", "all"]


class DatasetFacts(Config):
    """`dataset.json`."""

    schema_version: int = SCHEMA_VERSION
    name: str
    num_users: int
    num_items: int
    num_events: int
    modalities: dict[str, ModalityFacts] = {}
    item_fields: dict[str, FieldFacts] = {}
    user_fields: dict[str, FieldFacts] = {}
    split_rule: str
    """One sentence, e.g. 'global temporal: first 81 % train, next 9 % valid, rest test'."""
    splits: dict[Split, SplitFacts]
    tie_rule: str
    """How events of equal time are ordered; 'ties unknown' where there are no timestamps."""
    tied_events: int | None = None
    """Observed events that share user and time with another one; None without timestamps."""
    label_rule: str
    unlabelled_events: int = 0
    """Events without a label, which `label.missing = "null"` accepts."""
    sampled_negatives: int = 0
    """Of `num_events`: drawn, not observed."""
    rows: RowFacts | None = None
    """Of the rows that `rank` can stream; None without."""
    has_timestamps: bool
    timestamp_unit: TimeUnit | None = None
    """The coarsest unit that holds every time of the source exactly; None without timestamps."""
    first_time: str | None = None
    """Of all events, in UTC, as 1997-09-20T03:05:10Z, with as many digits as the unit has."""
    last_time: str | None = None
    filter_rule: str = "none"
    read: RowCounts = RowCounts()
    """Rows of the source; items and users that it lists or that an event names."""
    dropped: dict[str, RowCounts] = {}
    """What was left out, by reason: what was read is what was left out and what is here, without
    `sampled_negatives`. An event counts under the first reason that applies."""
    duplicate_events: int = 0
    """Rows of the source that repeat user, item, time, behaviour and rating of an earlier one."""
    similar_ids: dict[Literal["items", "users"], SimilarIds] = {}
    source: dict[str, Any] = {}
    """Source kind; input files with sizes and sha256."""
    files: dict[str, FileFacts] = {}
    """Every other file of the folder, by its path there."""
    checksum: str
    """sha256 over the content of every other file of the folder, in sorted order."""


@final
class Dataset:
    """Reader of a dataset folder; opening reads `dataset.json` and looks which files there are.

    Jobs open one with `open_dataset`, which also checks what the files hold. Where `facts` are given, nothing
    is read until it is asked for.
    """

    def __init__(self, uri: str, facts: DatasetFacts | None = None) -> None:
        self.uri = uri
        self.facts = facts or read_facts(uri)
        if facts is None:
            check_files(uri, self.facts.files, remedy=_AGAIN, may_have=(DESCRIPTION,))

    def items(self, columns: list[str] | None = None) -> pa.Table:
        """Read items.parquet, in row order."""
        return self.table("items.parquet", columns, self.facts.num_items)

    def users(self, columns: list[str] | None = None) -> pa.Table:
        """Read users.parquet, in row order."""
        return self.table("users.parquet", columns, self.facts.num_users)

    def vocabulary(self, field: str) -> pa.ChunkedArray:
        """Return (size,) text: the values of a side field, such as `item_genres`, by their ids.

        The first is null: id 0 means missing or unknown, and the file begins with id 1.
        """
        entity, _, name = field.partition("_")
        size = (self.facts.item_fields if entity == "item" else self.facts.user_fields)[name].size
        values = self.table(f"fields/{field}.parquet", ["value"], size - 1)["value"]
        return pa.chunked_array([pa.nulls(1, pa.string()), *values.cast(pa.string()).chunks])

    def edges(self, field: str) -> tuple[float, ...] | None:
        """Return where the buckets of a field of numbers begin, such as `user_age`, but the first.

        None where the vocabulary does not say, as one that others wrote need not.
        """
        entity, _, name = field.partition("_")
        size = (self.facts.item_fields if entity == "item" else self.facts.user_fields)[name].size
        table = self.table(f"fields/{field}.parquet", None, size - 1)
        if "low" not in table.column_names:
            return None
        return tuple(float(value) for value in table["low"].to_pylist()[1:])

    def events(self, columns: list[str] | None = None, split: Split | None = None) -> pa.Table:
        """Read events in order, all of them or one part.

        Memory: 8 bytes a row for each int64 column asked for; ask for what is needed.
        """
        row_filter = None if split is None else pads.field("split") == split
        with reading(join(self.uri, "events")):
            table = self.event_files().to_table(columns=columns, filter=row_filter).combine_chunks()
        self._check_events(table.num_rows, split)
        return table

    def event_batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Stream the events in order."""
        num_rows = 0
        with reading(join(self.uri, "events")):
            for batch in self.event_files().to_batches(columns=columns):
                num_rows += batch.num_rows
                yield batch
        self._check_events(num_rows, None)

    def event_files(self) -> pads.FileSystemDataset:
        """Return the events as a pyarrow dataset, for readers that filter while they stream."""
        fs, inner = arrow_filesystem(join(self.uri, "events"))
        return pads.dataset(inner, filesystem=fs, format="parquet")  # pyright: ignore[reportReturnType]

    def content(self, modality: str) -> Array:
        """Return the (num_items, dim) vectors of a modality, memory-mapped on a local disk."""
        return self._array(modality, f"content/{modality}.npy")

    def content_mask(self, modality: str) -> Array:
        """Return (num_items,) bool: which items have this modality."""
        return self._array(modality, f"content/{modality}.mask.npy")

    @cached_property
    def item_ids(self) -> pa.Array:
        """(num_items,) ids in row order."""
        return id_array(self.items(["item_id"])["item_id"])

    def table(self, name: str, columns: list[str] | None, num_rows: int) -> pa.Table:
        """Read a Parquet file of the folder whole, which has so many rows."""
        uri = join(self.uri, name)
        fs, inner = arrow_filesystem(uri)
        with reading(uri):
            table = pq.read_table(inner, filesystem=fs, columns=columns).combine_chunks()
        _check_rows(uri, table.num_rows, num_rows)
        return table

    def _check_events(self, num_rows: int, split: Split | None) -> None:
        expected = self.facts.num_events if split is None else self.facts.splits[split].events
        _check_rows(join(self.uri, "events"), num_rows, expected)

    def _array(self, modality: str, name: str) -> Array:
        if modality not in self.facts.modalities:
            have = ", ".join(self.facts.modalities) or "none"
            raise DataError(
                f"no modality '{modality}'", file=join(self.uri, "dataset.json"), remedy=f"It has: {have}"
            )
        uri = join(self.uri, name)
        with reading(uri), local_copy(uri) as path:
            # The copy of a remote file vanishes with the context, so only local files stay mapped.
            array = np.load(path, mmap_mode="r" if is_local(self.uri) else None)
        _check_rows(uri, len(array), self.facts.num_items)
        return array


def open_dataset(uri: str, mode: Verify = "once", *, alone: bool = False) -> Dataset:
    """Open a dataset after checking every file against `dataset.json`; every rank of a group calls this.

    Sizes and row counts are checked each time. Contents are read as `mode` says, each file by one rank; with
    `alone` all by this one, and no other need call.

    Raises:
        DataError: no dataset, or a file that is missing, does not belong to it, or is not what was written.
    """
    dataset = Dataset(uri)
    verify(uri, dataset.facts.files, remedy=_AGAIN, mode=mode, alone=alone)
    return dataset


def _check_rows(uri: str, num_rows: int, expected: int) -> None:
    if num_rows != expected:
        problem = f"damaged: it has {num_rows:,} rows, and {expected:,} were written"
        raise DataError(problem, file=uri, remedy=_AGAIN)


def read_facts(uri: str) -> DatasetFacts:
    """Read `dataset.json` alone, whatever became of the other files.

    Raises:
        DataError: it is missing, damaged, or of another version.
    """
    path = join(uri, DESCRIPTION)
    try:
        said = read_signed(read_bytes(path))
        # Before all else, as another version may have other keys.
        if said.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                "a dataset of another version",
                file=path,
                field="schema_version",
                value=said.get("schema_version"),
                remedy="Prepare it again with this version",
            )
        return DatasetFacts.model_validate(said)
    except FileNotFoundError:
        remedy = "Make one with: trec-semid prepare CONFIG.toml"
        raise DataError("no dataset here", file=path, remedy=remedy) from None
    except (ValueError, ValidationError) as error:
        remedy = "Prepare the dataset again with this version"
        raise DataError(f"not a dataset description: {error}", file=path, remedy=remedy) from None


_AGAIN = "Prepare the dataset again, in another `out` or after removing this one"


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Word what a damaged dataset makes readers say.

    Raises:
        DataError: a file is missing, cut off, or not what it should be.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError("this part of the dataset is missing", file=uri, remedy=_AGAIN) from None
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"damaged: {told}", file=uri, remedy=_AGAIN) from None
