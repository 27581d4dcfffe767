"""The items of a generation, removed ones too, and what a lineage of additions may do to them.

Legend: N items, R positions, n new items.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trec_semid.core.arrays import Flags, Int32s, Ints
from trec_semid.core.errors import DataError
from trec_semid.core.hashing import tuple_keys
from trec_semid.core.ids import id_array, rows_of
from trec_semid.core.paths import arrow_filesystem, exists, join
from trec_semid.tokenizers.generations.manifest import Change, Collisions
from trec_semid.tokenizers.generations.slots import free_slots
from trec_semid.tokenizers.maps.code_files import ORIGIN_KEY, SEAL_KEY, SIZES_KEY, read_codes
from trec_semid.tokenizers.maps.origin import Origin
from trec_semid.tokenizers.maps.semantic_ids import FILE, SemanticIds

TOMBSTONES = "tombstones.parquet"
_WRITE_ROWS = 1 << 20


class StoredItems(NamedTuple):
    """Every item that a lineage has or had, each once: columns and arrays, no Python object an item."""

    item_ids: pa.Array
    """(N,) text."""
    codes: Int32s
    """(N, R) int32; of a removed item, those that stay taken."""
    added: Int32s
    """(N,) int32 number of the generation that gave the tuple."""
    removed: Int32s
    """(N,) int32 number of the generation that removed the item; 0 of those that are there."""

    @property
    def is_live(self) -> Flags:
        """(N,) which items are there."""
        return self.removed == 0

    @property
    def live(self) -> "StoredItems":
        """Those that are there."""
        return self.take(np.flatnonzero(self.is_live))

    def take(self, rows: Ints) -> "StoredItems":
        """Return (n,) rows of it."""
        if len(rows) == len(self.added):
            return self
        return StoredItems(
            self.item_ids.take(pa.array(rows)), self.codes[rows], self.added[rows], self.removed[rows]
        )


class NewItems(NamedTuple):
    """Items with the tuples that a tokenizer gave them."""

    item_ids: pa.Array
    """(n,) text, each once."""
    codes: Int32s
    """(n, R) int32, or one position less where the last one is for slots."""
    file: str
    """Where they were read, for errors."""
    sizes: tuple[int, ...] = ()
    """Codebook sizes that they state, for each of their positions; none where they state none."""


class Removal(NamedTuple):
    """Items to be removed."""

    item_ids: pa.Array
    """(n,) text, each once."""
    file: str


class Grown(NamedTuple):
    """A lineage one generation on."""

    items: StoredItems
    change: Change


def first_items(ids: SemanticIds, number: int) -> StoredItems:
    """Return the items that a lineage begins with."""
    count = len(ids.item_ids)
    return StoredItems(ids.item_ids, ids.codes, np.full(count, number, np.int32), np.zeros(count, np.int32))


def grow(
    before: StoredItems,
    number: int,
    *,
    sizes: tuple[int, ...],
    collisions: Collisions,
    new: NewItems | None = None,
    removal: Removal | None = None,
) -> Grown:
    """Add items and remove some; nobody else's tuple changes.

    An item that was removed before comes back with its own tuple, whatever the tokenizer says of it now. A
    removed item's tuple is never given to another.

    Args:
        before: (N,) items of the generation that is current.
        number: of the generation that this makes.
        sizes: (R,) codebook sizes.
        collisions: what happens to a new item whose tuple is taken.
        new: items to add.
        removal: items to remove.

    Raises:
        DataError: an item is there already, or is not there to be removed, or its tuple is taken and may
            not be or has no slot left; or no item would be left.
    """
    removed, num_removed, num_returned, num_new = before.removed.copy(), 0, 0, 0
    if removal is not None:
        rows = _rows_to_remove(before, removal, number)
        removed[rows] = number
        num_removed = len(rows)
    items = before._replace(removed=removed)
    if new is not None:
        rows = rows_of(new.item_ids, before.item_ids)
        _expect_not_there(before, new, rows)
        back = rows[rows >= 0]
        removed[back] = 0
        num_returned, fresh = len(back), np.flatnonzero(rows < 0)
        codes = _with_free_tuples(before, new, fresh, sizes=sizes, collisions=collisions)
        num_new = len(fresh)
        items = StoredItems(
            _joined(before.item_ids, new.item_ids.take(pa.array(fresh))),
            np.concatenate([before.codes, codes]),
            np.append(before.added, np.full(num_new, number, np.int32)),
            np.append(removed, np.zeros(num_new, np.int32)),
        )
    if removal is not None and not items.is_live.any():
        remedy = "Leave one at least, or publish another run"
        raise DataError("no item would be left, and a map has some", file=removal.file, remedy=remedy)
    drift = (0.0,) * len(sizes)
    added = num_new + num_returned
    return Grown(items, Change(added=added, returned=num_returned, moved=0, removed=num_removed, drift=drift))


def with_slots(ids: SemanticIds, slots: int, file: str) -> SemanticIds:
    """Number the items of each tuple in one more position of `slots` codes.

    Args:
        ids: (N, R) codes; the result has R + 1 positions.
        slots: codes of the position.
        file: where they were read, for errors.

    Raises:
        DataError: more items have one tuple than there are slots.
    """
    keys = tuple_keys(ids.codes, ids.sizes)
    numbers = free_slots(keys, keys[:0], np.zeros(0, np.int64))
    _expect_slots(numbers, slots, ids.item_ids, ids.codes, file)
    codes = np.concatenate([ids.codes, numbers.astype(np.int32)[:, None]], axis=1)
    return SemanticIds(ids.item_ids, codes, (*ids.sizes, slots), ids.origin)


def save_items(folder: str, items: StoredItems, sizes: tuple[int, ...], origin: Origin | None) -> None:
    """Write the map of those that are there, in the form of `SemanticIds.save`, and the tombstones.

    Args:
        folder: of the generation.
        items: (N,) of it.
        sizes: (R,) codebook sizes.
        origin: what all of them were computed from, where that is known.
    """
    live = items.live
    metadata = {SIZES_KEY: ",".join(map(str, sizes)).encode()}
    seal = SemanticIds(live.item_ids, live.codes, sizes, origin).seal().encode()
    described = {ORIGIN_KEY: origin.model_dump_json().encode()} if origin else {}
    _write(join(folder, FILE), live, {**metadata, SEAL_KEY: seal, **described}, ("added",))
    gone = items.take(np.flatnonzero(~items.is_live))
    if len(gone.added):
        _write(join(folder, TOMBSTONES), gone, metadata, ("added", "removed"))


def load_items(folder: str) -> StoredItems:
    """Read what `save_items` wrote, whose files the caller has verified."""
    live = _read(join(folder, FILE))
    if not exists(join(folder, TOMBSTONES)):
        return live
    gone = _read(join(folder, TOMBSTONES))
    return StoredItems(
        _joined(live.item_ids, gone.item_ids),
        np.concatenate([live.codes, gone.codes]),
        np.append(live.added, gone.added),
        np.append(live.removed, gone.removed),
    )


def _rows_to_remove(before: StoredItems, removal: Removal, number: int) -> Ints:
    rows = rows_of(removal.item_ids, before.item_ids)
    absent = (rows < 0) | (before.removed[rows] != 0)
    if absent.any():
        row = int(np.argmax(absent))
        problem = f"this item is not in the generation that generation {number} follows, so it cannot leave"
        item = removal.item_ids[row].as_py()
        remedy = "Leave the row out"
        raise DataError(problem, file=removal.file, row=row + 1, field="item_id", value=item, remedy=remedy)
    return rows


def _expect_not_there(before: StoredItems, new: NewItems, rows: Ints) -> None:
    there = rows >= 0
    there[there] = before.removed[rows[there]] == 0
    if there.any():
        row = int(np.argmax(there))
        raise DataError(
            f"duplicate item: it has a semantic ID since generation {int(before.added[rows[row]])}",
            file=new.file,
            row=row + 1,
            field="item_id",
            value=new.item_ids[row].as_py(),
            remedy="Leave the row out: a published tuple never changes",
        )


def _with_free_tuples(
    before: StoredItems, new: NewItems, fresh: Ints, *, sizes: tuple[int, ...], collisions: Collisions
) -> Int32s:
    """Return the codes of new rows `fresh`, which no item has or had where that is promised."""
    codes = new.codes[fresh]
    if collisions == "keep":
        return codes
    has_slots = collisions == "slots"
    stem = sizes[:-1] if has_slots else sizes
    keys, known = tuple_keys(codes, stem), tuple_keys(before.codes[:, : len(stem)], stem)
    taken = before.codes[:, -1] if has_slots else np.zeros(len(known), np.int64)
    slots = free_slots(keys, known, taken)
    _expect_slots(slots, sizes[-1] if has_slots else 1, new.item_ids.take(pa.array(fresh)), codes, new.file)
    return np.concatenate([codes, slots.astype(np.int32)[:, None]], axis=1) if has_slots else codes


def _expect_slots(slots: Ints, limit: int, item_ids: pa.Array, codes: Int32s, file: str) -> None:
    over = slots >= limit
    if not over.any():
        return
    row = int(np.argmax(over))
    item, most = item_ids[row].as_py(), int(slots.max()) + 1
    told = "its tuple is taken" if limit == 1 else f"all {limit} slots of its tuple are taken"
    raise DataError(
        f"{told} {tuple(codes[row].tolist())}; so it is of {int(over.sum()):,} items",
        file=file,
        field="item_id",
        value=item,
        remedy=f"Publish a retrained generation with --slots {most} or more, or leave these items out",
    )


def _joined(one: pa.Array, other: pa.Array) -> pa.Array:
    return pa.concat_arrays([id_array(one), id_array(other)])


def _write(uri: str, items: StoredItems, metadata: dict[bytes, bytes], more: tuple[str, ...]) -> None:
    """Write in stretches: text of more than 2 GiB has no place in one column of `string`."""
    columns = [
        ("item_id", pa.string()),
        ("codes", pa.list_(pa.int32())),
        *((one, pa.int32()) for one in more),
    ]
    schema = pa.schema(columns, metadata=metadata)
    fs, inner = arrow_filesystem(uri)
    with pq.ParquetWriter(inner, schema, filesystem=fs) as writer:
        for start in range(0, len(items.added), _WRITE_ROWS):
            rows = slice(start, start + _WRITE_ROWS)
            codes = items.codes[rows]
            offsets = pa.array(np.arange(len(codes) + 1, dtype=np.int32) * codes.shape[1])
            lists = pa.ListArray.from_arrays(offsets, pa.array(codes.reshape(-1), pa.int32()))
            ids = items.item_ids.slice(start, _WRITE_ROWS).cast(pa.string())
            numbers = [pa.array(getattr(items, name)[rows], pa.int32()) for name in more]
            writer.write_table(pa.Table.from_arrays([ids, lists, *numbers], schema=schema))


def _read(uri: str) -> StoredItems:
    ids, codes, _, _ = read_codes(uri)
    fs, inner = arrow_filesystem(uri)
    names = [name for name in ("added", "removed") if name in pq.read_schema(inner, filesystem=fs).names]
    numbers = pq.read_table(inner, filesystem=fs, columns=names)
    added = numbers["added"].to_numpy()
    removed = numbers["removed"].to_numpy() if "removed" in names else np.zeros(len(added), np.int32)
    return StoredItems(ids, codes, added, removed)
