"""How a generation comes to be: written whole under its own number, and made current by one file."""

from collections.abc import Sequence

from trec_semid.core.errors import DataError
from trec_semid.core.paths import exists, find_files, join, read_bytes, remove, staged_folder, write_bytes
from trec_semid.core.versions import code_commit
from trec_semid.runtime.fingerprints import fingerprints
from trec_semid.runtime.runs import command_line
from trec_semid.tokenizers.generations.drafts import Draft, verified_items
from trec_semid.tokenizers.generations.items import (
    TOMBSTONES,
    save_items,
)
from trec_semid.tokenizers.generations.manifest import (
    GENERATION,
    Generation,
    codebooks_checksum,
)
from trec_semid.tokenizers.generations.store import Entry, Store, open_or_create, utc_now
from trec_semid.tokenizers.maps.coefficients import FILE as COEFFICIENTS
from trec_semid.tokenizers.maps.record import (
    DRIFT,
    RECORD,
    write_record,
)


def publish(uri: str, seen: Entry, draft: Draft, note: str = "") -> Generation:
    """Write a generation and make it the current one; until then, nobody sees any of it.

    Args:
        uri: of the store, which is made where there is none; the caller holds its lock.
        seen: what held when the caller began.
        draft: made from that.
        note: a person's words.

    Raises:
        LockError: another process was faster; the store is as that one left it.
        DataError: somebody removed files of it meanwhile; nothing is published.
        OSError: the disk is full, say; the store is as it was.
    """
    store = open_or_create(uri)
    number, folder = draft.number, store.folder(draft.number)
    # The number is this process's own from here on, whatever becomes of it.
    begun = store.advance(seen, "begin", number, highest=number)
    try:
        with staged_folder(folder, GENERATION) as staging:
            generation = _write(staging, store, draft, note)
            written = find_files(staging)
        _expect_there(folder, written)
        published = (*begun.published, number)
        store.advance(begun, "publish", number, current=number, published=published, note=note)
    except BaseException as error:
        newest = store.newest()
        # What interrupts right after the last file was written does not undo it.
        if number not in newest.published:
            remove(folder)
        # Who took the lock over may have removed files of it, and says so in the history.
        if isinstance(error, (FileNotFoundError, DataError)) and newest != begun:
            raise store.overtaken() from None
        raise
    return generation


def roll_back(store: Store, seen: Entry, number: int, note: str = "") -> Generation:
    """Make an earlier generation the current one again, once its files are seen to be whole.

    Raises:
        DataError: there is no such generation, or it is damaged.
        LockError: another process was faster; nothing has changed.
    """
    generation = store.generation(number)
    verified_items(store.folder(number), generation)
    if seen.current != number or store.newest() != seen:
        store.advance(seen, "rollback", number, current=number, note=note)
    return generation


def _expect_there(folder: str, written: Sequence[str]) -> None:
    """Refuse to name a generation of which somebody removed a file meanwhile."""
    if absent := {*written} - {*find_files(folder)}:
        remedy = "Did someone tidy up? Nothing was published; run again, alone"
        raise DataError("removed after it was written", file=join(folder, min(absent)), remedy=remedy)


def _write(folder: str, store: Store, draft: Draft, note: str) -> Generation:
    # The map states what it was computed from where that is all of it: later items are of no dataset.
    save_items(folder, draft.items, draft.sizes, None if draft.lineage else draft.origin)
    for name, place in draft.copied.items():
        write_bytes(join(folder, name), read_bytes(place))
    if draft.coefficients is not None:
        draft.coefficients.save(join(folder, COEFFICIENTS))
    dataset, dataset_checksum, seed = draft.record
    write_record(folder, dataset=dataset, dataset_checksum=dataset_checksum, seed=seed)
    more = [name for name in (TOMBSTONES, DRIFT) if exists(join(folder, name))]
    num_live = int(draft.items.is_live.sum())
    generation = Generation(
        store=store.id,
        number=draft.number,
        kind=draft.kind,
        parent=draft.follows.number if draft.follows else None,
        lineage=draft.lineage,
        readable_from=draft.readable_from,
        tokenizer=draft.tokenizer,
        codebooks=codebooks_checksum(draft.sizes, draft.tokenizer),
        sizes=draft.sizes,
        collisions=draft.collisions,
        items=num_live,
        tombstones=len(draft.items.added) - num_live,
        change=draft.change,
        origin=draft.origin,
        source=draft.source,
        source_checksum=draft.source_checksum,
        created=utc_now(),
        command=command_line(),
        commit=code_commit(),
        note=note,
        files=fingerprints(folder, [RECORD, *more]),
    )
    write_bytes(join(folder, GENERATION), generation.to_bytes())
    return generation
