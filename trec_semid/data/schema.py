"""The dataset folder: what `prepare` writes and everything else reads.

dataset.json            counts, modalities, fields, split, ties, label, source, checksum; written last
items.parquet           item_id (string), row (int64, = position), side fields
users.parquet           user_id (string), row, side fields
fields/<entity>_<field>.parquet    id (int32), value (string): the vocabulary of a side field
content/<modality>.npy  (num_items, dim) float16 or float32, row order of items.parquet
content/<modality>.mask.npy        (num_items,) bool, True where the item has this content
events/part-*.parquet   user_row, item_row (int64), label (float32 or null), timestamp (int64 or
null), order (int64), split (train | valid | test), behaviour; sorted by order. Sampled negatives
(label 0, behaviour 'negative') follow their positive and repeat its timestamp, order and split.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, final

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pydantic import ValidationError

from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.core.paths import arrow_filesystem, is_local, join, local_copy, read_bytes

SCHEMA_VERSION = 1
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
    has_timestamps: bool
    filter_rule: str = "none"
    source: dict[str, Any] = {}
    """Source kind, files with sizes and sha256, counts before filtering."""
    checksum: str
    """sha256 over the content of every other file of the folder, in sorted order."""


@final
class Dataset:
    """Reader of a dataset folder; opening reads `dataset.json` only, or nothing where `facts` are given."""

    def __init__(self, uri: str, facts: DatasetFacts | None = None) -> None:
        self.uri = uri
        self.facts = facts or _read_facts(uri)

    def items(self, columns: list[str] | None = None) -> pa.Table:
        """Read items.parquet, in row order."""
        return self._table("items.parquet", columns)

    def users(self, columns: list[str] | None = None) -> pa.Table:
        """Read users.parquet, in row order."""
        return self._table("users.parquet", columns)

    def events(self, columns: list[str] | None = None, split: Split | None = None) -> pa.Table:
        """Read events in order, all of them or one part.

        Memory: 8 bytes a row for each int64 column asked for; ask for what is needed.
        """
        wanted = None if split is None else pads.field("split") == split
        with _reading(join(self.uri, "events")):
            return self.event_files().to_table(columns=columns, filter=wanted).combine_chunks()

    def event_batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Stream the events in order."""
        with _reading(join(self.uri, "events")):
            yield from self.event_files().to_batches(columns=columns)

    def event_files(self) -> pads.FileSystemDataset:
        """Return the events as a pyarrow dataset, for readers that filter while they stream."""
        fs, inner = arrow_filesystem(join(self.uri, "events"))
        return pads.dataset(inner, filesystem=fs, format="parquet")  # pyright: ignore[reportReturnType]

    def content(self, modality: str) -> np.ndarray[Any, Any]:
        """Return the (num_items, dim) vectors of a modality, memory-mapped on a local disk."""
        return self._array(modality, f"content/{modality}.npy")

    def content_mask(self, modality: str) -> np.ndarray[Any, Any]:
        """Return (num_items,) bool: which items have this modality."""
        return self._array(modality, f"content/{modality}.mask.npy")

    @cached_property
    def item_ids(self) -> list[str]:
        """Item ids in row order."""
        return self.items(["item_id"])["item_id"].to_pylist()

    def _table(self, name: str, columns: list[str] | None) -> pa.Table:
        uri = join(self.uri, name)
        fs, inner = arrow_filesystem(uri)
        with _reading(uri):
            return pq.read_table(inner, filesystem=fs, columns=columns).combine_chunks()

    def _array(self, modality: str, name: str) -> np.ndarray[Any, Any]:
        if modality not in self.facts.modalities:
            have = ", ".join(self.facts.modalities) or "none"
            raise DataError(
                f"no modality '{modality}'", file=join(self.uri, "dataset.json"), remedy=f"It has: {have}"
            )
        uri = join(self.uri, name)
        with _reading(uri), local_copy(uri) as path:
            # The copy of a remote file vanishes with the context, so only local files stay mapped.
            array = np.load(path, mmap_mode="r" if is_local(self.uri) else None)
        if len(array) != self.facts.num_items:
            problem = f"damaged: it has {len(array):,} rows for {self.facts.num_items:,} items"
            raise DataError(problem, file=uri, remedy=_AGAIN)
        return array


def _read_facts(uri: str) -> DatasetFacts:
    path = join(uri, "dataset.json")
    try:
        return DatasetFacts.model_validate(json.loads(read_bytes(path)))
    except FileNotFoundError:
        remedy = "Make one with: trec-semid prepare CONFIG.toml"
        raise DataError("no dataset here", file=path, remedy=remedy) from None
    except (ValueError, ValidationError) as error:
        remedy = "Prepare the dataset again with this version"
        raise DataError(f"not a dataset description: {error}", file=path, remedy=remedy) from None


_AGAIN = "Prepare the dataset again, in another `out` or after removing this one"


@contextmanager
def _reading(uri: str) -> Iterator[None]:
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
