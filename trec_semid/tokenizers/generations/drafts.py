"""A generation before it is written: where its codes come from, and all that can be refused of it."""

import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trec_semid.core.errors import DataError
from trec_semid.core.ids import id_array, rows_of
from trec_semid.core.paths import arrow_filesystem, exists, join, list_folder, read_bytes
from trec_semid.runtime.fingerprints import fingerprint, verify
from trec_semid.tokenizers.generations.delta import compare_items
from trec_semid.tokenizers.generations.items import (
    NewItems,
    Removal,
    StoredItems,
    first_items,
    grow,
    load_items,
    with_slots,
)
from trec_semid.tokenizers.generations.manifest import (
    Change,
    Collisions,
    Generation,
    Kind,
    checksum_of,
    generation_of,
    tokenizer_checksum,
)
from trec_semid.tokenizers.generations.store import Entry, Store
from trec_semid.tokenizers.maps.code_files import stated_sizes
from trec_semid.tokenizers.maps.coefficients import FILE as COEFFICIENTS
from trec_semid.tokenizers.maps.coefficients import Coefficients
from trec_semid.tokenizers.maps.origin import Origin
from trec_semid.tokenizers.maps.record import (
    DRIFT,
    QUALITY,
    TOKENIZER,
    read_record,
    verify_record,
)
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds


class Source(NamedTuple):
    """Where codes come from."""

    place: str
    """As a person named it."""
    file: str
    """The map."""
    folder: str | None
    """With the tokenizer; None of a map alone."""
    dataset: str
    dataset_checksum: str
    seed: int


class Batch(NamedTuple):
    """Items for a generation of additions."""

    new: NewItems | None
    removal: Removal | None
    source: str
    """As a person named it."""
    checksum: str
    """Tells whether the same was appended already; as `checksum_of` or a file's own."""
    folder: str | None = None
    """What `assign` wrote, with its report and coefficients; None of a map alone."""


class Draft(NamedTuple):
    """A generation before it is written: nothing in it can be refused any more."""

    number: int
    kind: Kind
    items: StoredItems
    sizes: tuple[int, ...]
    collisions: Collisions
    change: Change
    tokenizer: str | None
    origin: Origin | None
    source: str
    source_checksum: str
    follows: Generation | None
    """The current one."""
    copied: Mapping[str, str]
    """Files that are taken over, by path in the folder."""
    coefficients: Coefficients | None
    record: tuple[str, str, int]
    """Dataset, its checksum and the seed, as `codes.json` has them."""

    @property
    def lineage(self) -> tuple[int, ...]:
        """The generations that it is appended to, oldest first."""
        if self.follows is None or self.kind == "retrain":
            return ()
        return (*self.follows.lineage, self.follows.number)

    @property
    def readable_from(self) -> int:
        """The oldest generation of its lineage, or itself, since which nothing was removed."""
        if self.follows is None or self.kind == "retrain" or self.change.removed:
            return self.number
        return self.follows.readable_from


def next_number(store: Store | None, seen: Entry) -> int:
    """Return a number that no generation has or had."""
    return 1 + max(seen.highest, *(store.folders() if store else ()), 0)


def verified_items(folder: str, generation: Generation) -> StoredItems:
    """Return the items of a generation, once its files are seen to be those that were written.

    Raises:
        DataError: a file is missing or damaged.
    """
    remedy = "Roll back to another generation, or publish anew"
    verify(folder, generation.files, remedy=remedy)
    verify_record(folder)
    return load_items(folder)


def retrained_already(
    store: Store | None, seen: Entry, source: Source, slots: int | None
) -> Generation | None:
    """Return the current generation where it is of the same source; arguments as of `retrained`."""
    current = store.generation(seen.current) if store and seen.current else None
    is_same = (
        current and current.kind == "retrain" and current.source_checksum == _source_checksum(source, slots)
    )
    return current if is_same else None


def retrained(store: Store | None, seen: Entry, source: Source, slots: int | None) -> Draft:
    """Return a generation that begins a lineage.

    Args:
        store: where it is to be published; None of a store that is not there yet.
        seen: what held when the caller began.
        source: verified by the caller.
        slots: codes of the last position, which tells items of one tuple apart; None as the source has it.

    Raises:
        DataError: the map is damaged, more items have one tuple than there are slots, or there are slots
            already and more of them.
    """
    current = store.generation(seen.current) if store and seen.current else None
    ids = SemanticIds.load(source.file)
    ids, collisions = _with_slots(ids, source, slots)
    number = next_number(store, seen)
    items = first_items(ids, number)
    change = Change(added=len(ids.item_ids), moved=0, removed=0, drift=None)
    if store and current:
        before = verified_items(store.folder(current.number), current).live
        change = compare_items(before, items).change()
    folder = source.folder
    beside = join(folder, COEFFICIENTS) if folder else ""
    return Draft(
        number=number,
        kind="retrain",
        items=items,
        sizes=ids.sizes,
        collisions=collisions,
        change=change,
        tokenizer=_tokenizer_of(source),
        origin=ids.origin,
        source=source.place,
        source_checksum=_source_checksum(source, slots),
        follows=current,
        copied=_tokenizer_files(folder) if folder else {},
        coefficients=Coefficients.load(beside) if folder and exists(beside) else None,
        record=(source.dataset, source.dataset_checksum, source.seed),
    )


def appended(store: Store, seen: Entry, batch: Batch) -> Draft:
    """Return a generation of additions and removals.

    Args:
        store: with a current generation.
        seen: what held when the caller began.
        batch: what to add and remove; of the current generation's tokenizer, as the caller has checked.

    Raises:
        DataError: the current generation is damaged, or see `items.grow`.
    """
    current = store.generation(seen.current) if seen.current else store.current()
    folder = store.folder(current.number)
    before = verified_items(folder, current)
    _expect_sizes(batch.new, current)
    number = next_number(store, seen)
    grown = grow(
        before,
        number,
        sizes=current.sizes,
        collisions=current.collisions,
        new=batch.new,
        removal=batch.removal,
    )
    record = read_record(folder)
    report = {DRIFT: join(batch.folder, DRIFT)} if batch.folder else {}
    return Draft(
        number=number,
        kind="append",
        items=grown.items,
        sizes=current.sizes,
        collisions=current.collisions,
        change=grown.change,
        tokenizer=current.tokenizer,
        origin=current.origin,
        source=batch.source,
        source_checksum=batch.checksum,
        follows=current,
        copied={**_tokenizer_files(folder), **report},
        coefficients=_joined_coefficients(folder, batch, before),
        record=(record.dataset, record.dataset_checksum, record.seed),
    )


def appended_already(store: Store, seen: Entry, current: Generation, checksum: str) -> Generation | None:
    """Return the generation that appended the same, where nothing can have undone it since.

    Args:
        store: whose current generation and its lineage are looked through.
        seen: what holds.
        current: the current generation.
        checksum: of what was appended, as `Batch` has it.
    """
    one: Generation = current
    for before in (*reversed(current.lineage), None):
        if one.kind == "append" and one.source_checksum == checksum:
            return one
        if before not in seen.published or one.change.removed or one.change.returned:
            return None
        one = store.generation(before)
    return None


def batch_of(place: str, folder: str | None, file: str, checksum: str | None = None) -> Batch:
    """Return the items of a map that `assign` wrote, or of a map alone.

    Args:
        place: as a person named it.
        folder: what `assign` wrote; None of a map alone.
        file: the map, which the caller has verified.
        checksum: what tells whether the same was appended already; the map's own where not given.

    Raises:
        DataError: the map is damaged.
    """
    ids = SemanticIds.load(file)
    fs, inner = arrow_filesystem(file)
    stated = stated_sizes(pq.read_schema(inner, filesystem=fs).metadata, file)
    new = NewItems(ids.item_ids, ids.codes, place, stated)
    return Batch(new, None, place, checksum or fingerprint(file).sha256, folder)


def _tokenizer_of(source: Source) -> str | None:
    return tokenizer_checksum(join(source.folder, TOKENIZER)) if source.folder else None


def _source_checksum(source: Source, slots: int | None) -> str:
    return checksum_of([fingerprint(source.file).sha256, _tokenizer_of(source), slots])


def _with_slots(ids: SemanticIds, source: Source, slots: int | None) -> tuple[SemanticIds, Collisions]:
    collisions = _collisions_of(source.folder, ids.sizes)
    if collisions == "slots":
        if slots is not None and slots < ids.sizes[-1]:
            problem = f"the last position has {ids.sizes[-1]} codes already, which items use"
            remedy = "Set --slots to as many or more, or leave it out"
            raise DataError(problem, file=source.file, field="slots", value=slots, remedy=remedy)
        sizes = (*ids.sizes[:-1], slots or ids.sizes[-1])
        return SemanticIds(ids.item_ids, ids.codes, sizes, ids.origin), "slots"
    if slots is not None:
        return with_slots(ids, slots, source.file), "slots"
    return ids, collisions


def _collisions_of(folder: str | None, sizes: tuple[int, ...]) -> Collisions:
    """Return how a generation, or a tokenize run, deals with items of equal tuples."""
    if folder is None:
        return "keep"
    # A generation of `--slots` has a position more than the run whose `quality.json` lies in it.
    generation = generation_of(folder)
    if generation and generation.sizes == sizes:
        return generation.collisions
    if not exists(join(folder, QUALITY)):
        return "keep"
    said = json.loads(read_bytes(join(folder, QUALITY))).get("collisions", {}).get("resolution")
    by_resolution: dict[str, Collisions] = {"extra_code": "slots", "next_nearest": "refuse"}
    return by_resolution.get(said, "keep")


def _expect_sizes(new: NewItems | None, current: Generation) -> None:
    if new is None:
        return
    stem = current.sizes[:-1] if current.collisions == "slots" else current.sizes
    # Of a smaller codebook the code that says 'missing' would be a codeword here: bounds alone cannot tell.
    fits = (
        new.codes.shape[1] == len(stem)
        and new.sizes in ((), stem)
        and bool((new.codes <= np.asarray(stem)).all())
    )
    if not fits:
        raise DataError(
            f"codes that do not fit generation {current.number}, whose codebooks have {stem} codes",
            file=new.file,
            field="codes",
            value=f"codebook sizes {new.sizes}" if new.sizes not in ((), stem) else None,
            remedy="Assign these items with the tokenizer of that generation",
        )


def _tokenizer_files(folder: str) -> dict[str, str]:
    tokenizer = join(folder, TOKENIZER)
    names = [f"{TOKENIZER}/{name}" for name in list_folder(tokenizer) if ".partial-" not in name]
    names += [QUALITY] if exists(join(folder, QUALITY)) else []
    return {name: join(folder, name) for name in names}


def _joined_coefficients(folder: str, batch: Batch, before: StoredItems) -> Coefficients | None:
    """Return those of the lineage with those of new items; who comes back has those of its own tuple."""
    place = join(folder, COEFFICIENTS)
    if not exists(place):
        return None
    known = Coefficients.load(place)
    if batch.new is None or batch.folder is None:
        return known
    fresh = np.flatnonzero(rows_of(batch.new.item_ids, before.item_ids) < 0)
    ids = batch.new.item_ids.take(pa.array(fresh))
    more = Coefficients.load(join(batch.folder, COEFFICIENTS), ids)
    joined = pa.concat_arrays([id_array(known.item_ids), id_array(ids)])
    return Coefficients(joined, np.concatenate([known.values, more.values]))
