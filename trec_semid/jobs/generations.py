"""`trec-semid generations`: a store of semantic IDs, listed, compared, added to, rolled back, collected."""

import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Column, Table

from trec_semid.checkpoints.bundle_files import MANIFEST, read_manifest
from trec_semid.core.config import load_saved
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.core.paths import exists, is_folder, join, write_bytes
from trec_semid.core.text_columns import as_text
from trec_semid.evaluation.evaluated import EVALUATED
from trec_semid.runtime.fingerprints import fingerprint
from trec_semid.runtime.logs import say, set_up_console
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.owners import check_file
from trec_semid.runtime.runs import RunFolder
from trec_semid.tokenizers.generations.collect import Collected, collect, plan_collection
from trec_semid.tokenizers.generations.delta import compare_items, delta_table
from trec_semid.tokenizers.generations.drafts import (
    Batch,
    Source,
    appended,
    appended_already,
    batch_of,
    retrained,
    retrained_already,
    verified_items,
)
from trec_semid.tokenizers.generations.items import Removal
from trec_semid.tokenizers.generations.manifest import (
    Change,
    Generation,
    ReadGeneration,
    checksum_of,
    read_before,
    reading_fault,
)
from trec_semid.tokenizers.generations.publish import publish, roll_back
from trec_semid.tokenizers.generations.store import Store, is_store, nothing_done, open_store, split_number
from trec_semid.tokenizers.maps.code_files import read_ids
from trec_semid.tokenizers.maps.record import DRIFT, RECORD, TOKENIZER
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds, expect_finished
from trec_semid.training.finished import parse_run
from trec_semid.training.matched_codes import seed_of, verified_file, verify_codes
from trec_semid.training.retrieval.setup import RetrieveConfig


def list_all(uri: str, models: Sequence[str] = ()) -> list[Generation]:
    """Print a line for every generation that can be read, and which of them models can read.

    Raises:
        DataError: no store, or one that is damaged; a model that says nothing of a generation.
    """
    set_up_console()
    store = open_store(uri)
    newest, reads = store.newest(), [_read_by(model) for model in models]
    generations = store.published()
    columns = ("kind", "after", "items", "added", "moved", "removed", "created")
    places = [Column(name, overflow="fold") for name in ("from", *(["readable by"] if models else []))]
    table = Table("number", "", *columns, *places)
    for one in generations:
        readers = [
            place
            for place, all_of_it in zip(models, reads, strict=True)
            if not any(reading_fault(read, one) for read in all_of_it)
        ]
        change = (f"{getattr(one.change, name):,}" for name in ("added", "moved", "removed"))
        mark = "current" if one.number == newest.current else ""
        numbers = (str(one.parent or ""), f"{one.items:,}", *change)
        more = [", ".join(readers)] if models else []
        when = one.created[: len("2026-11-30")]
        table.add_row(str(one.number), mark, one.kind, *numbers, when, one.source, *more)
    say(as_text(table))
    return generations


def show(place: str) -> Generation:
    """Print all that a generation says of itself, and the store's history of it, as JSON.

    Args:
        place: `store` or `store@7`.

    Raises:
        DataError: there is none, or a file of it is not what was written.
    """
    set_up_console()
    uri, number = split_number(place)
    store = open_store(uri)
    generation = store.current() if number is None else store.generation(number)
    verified_items(store.folder(generation.number), generation)
    done = [one.model_dump(mode="json") for one in store.history() if one.number == generation.number]
    keys = ("sequence", "action", "at", "command", "note")
    history = [{key: one[key] for key in keys} for one in done]
    said = {**generation.model_dump(mode="json"), "history": history}
    say(json.dumps(said, indent=1, ensure_ascii=False))
    return generation


def diff(uri: str, before: int, now: int, out: str | None = None) -> Change:
    """Print what differs between two generations; write the items that do, where `out` names a file.

    Raises:
        DataError: there is no such generation, it is damaged, or `out` cannot be written there.
    """
    set_up_console()
    store = open_store(uri)
    sides = [store.generation(number) for number in (before, now)]
    old, new = (verified_items(store.folder(one.number), one).live for one in sides)
    delta = compare_items(old, new)
    change = delta.change()
    if out:
        check_file(out)
        whole = pa.BufferOutputStream()
        pq.write_table(delta_table(delta, old, new), whole)
        write_bytes(out, whole.getvalue().to_pybytes())
    say(f"generation {before} -> {now}: {_told(change)}")
    if sides[0].codebooks != sides[1].codebooks:
        say("they have other codebooks: equal codes do not mean the same there")
    return change


def add(
    uri: str,
    source: str | None = None,
    *,
    slots: int | None = None,
    append: bool = False,
    remove: str | None = None,
    note: str = "",
) -> Generation:
    """Publish a generation and make it the current one; the same asked again changes nothing.

    Args:
        uri: of the store, which is made where there is none.
        source: run folder of `tokenize` or of a tuned ranker, bundle, or map: a retrained generation. What
            `assign` wrote: one of additions.
        slots: codes of one more position, which tells items of one tuple apart; of a retrained generation.
        append: a map alone is of new items, not of all.
        remove: Parquet file with the ids of items to remove.
        note: a person's words.

    Raises:
        ConfigError: options that do not go together.
        DataError: input that cannot be used; the store is as it was.
        LockError: another process was faster, or writes there.
    """
    set_up_console()
    adds = bool(source) and (append or _has_new_items_alone(source or ""))
    if not source and not remove:
        raise ConfigError("publish: nothing to publish. Name a run, what assign wrote, or --remove FILE.")
    if slots is not None and (adds or not source):
        raise ConfigError("--slots: a lineage's slots never change. Leave it out, or publish a tokenize run.")
    if slots is not None and slots < 1:
        raise ConfigError(f"--slots: a whole number from 1 on (got {slots}).")
    if remove and source and not adds:
        raise ConfigError("--remove: a retrained generation has just the items of its run. Leave it out.")
    with own_folder(uri, "generations", inputs=[source] if source else []):
        store = open_store(uri) if is_store(uri) else None
        seen = store.newest() if store else nothing_done()
        if source and not adds:
            of = _source(source)
            done = retrained_already(store, seen, of, slots)
            draft = None if done else retrained(store, seen, of, slots)
        else:
            store = store or open_store(uri)
            batch = _batch(store, source, remove)
            done = appended_already(store, seen, store.current(), batch.checksum)
            draft = None if done else appended(store, seen, batch)
        generation = done or (publish(uri, seen, draft, note) if draft else None)
    assert generation
    told = "is there already" if done else f"published: {_told(generation.change)}"
    say(f"{uri}: generation {generation.number} {told}; {generation.items:,} items")
    return generation


def rollback(uri: str, number: int, note: str = "") -> Generation:
    """Make an earlier generation the current one.

    Raises:
        DataError: there is no such generation, or it is damaged.
        LockError: another process writes there.
    """
    set_up_console()
    store = open_store(uri)
    with own_folder(uri, "generations"):
        generation = roll_back(store, store.newest(), number, note)
    say(f"{uri}: generation {number} is current, {generation.items:,} items")
    return generation


def collect_garbage(
    uri: str, keep: Sequence[int] = (), models: Sequence[str] = (), *, dry_run: bool = False
) -> Collected:
    """Remove generations that nobody needs.

    Args:
        uri: of the store.
        keep: numbers that stay besides.
        models: run folders and bundles that stay, with every generation that they can read.
        dry_run: say what would go, and leave it.

    Raises:
        DataError: a number or a model that cannot be; nothing is removed then.
        LockError: another process writes there.
    """
    set_up_console()
    store = open_store(uri)
    with own_folder(uri, "generations"):
        plan = plan_collection(store, keep, [read for model in models for read in _read_by(model)])
        if not dry_run:
            collect(store, plan)
    for number, why in plan.needed.items():
        say(f"generation {number} stays: {why}")
    gone = [f"generation {number}" for number in plan.collected]
    gone += [f"generation {number}, which was never published" for number in plan.leftovers]
    said = ", ".join(gone) or "nothing"
    say(f"would remove: {said}" if dry_run else f"removed: {said}")
    return plan


def _source(place: str) -> Source:
    """Return where a retrained generation comes from, once its files are verified."""
    file = verified_file(place)
    folder = None if place.endswith(".parquet") else expect_finished(place)
    if folder is None:
        origin = SemanticIds.load(file).origin
        known = (origin.dataset, origin.dataset_checksum) if origin else ("", "")
        return Source(place, file, None, *known, seed=0)
    of = verify_codes(folder)
    return Source(place, file, folder, of.name, of.checksum, seed_of(folder))


def _has_new_items_alone(place: str) -> bool:
    """Return whether `assign` wrote a folder of new items; with a tokenizer that moved, it has all items."""
    return exists(join(place, DRIFT)) and not is_folder(join(place, TOKENIZER))


def _batch(store: Store, source: str | None, remove: str | None) -> Batch:
    """Return what a generation of additions and removals adds and removes."""
    current = store.current()
    batch = Batch(None, None, remove or "", "")
    if source:
        file = verified_file(source)
        folder = None if source.endswith(".parquet") else source
        _expect_tokenizer(current, folder, source)
        batch = batch_of(source, folder, file)
    if remove:
        removal = Removal(read_ids(remove), remove)
        batch = batch._replace(
            removal=removal, checksum=checksum_of([batch.checksum, fingerprint(remove).sha256])
        )
    return batch


def _expect_tokenizer(current: Generation, folder: str | None, source: str) -> None:
    used = None
    if folder is not None:
        used = RunFolder(folder, "assign").read_json(DRIFT).get("tokenizer_checksum")
    if used != current.tokenizer:
        raise DataError(
            f"not of the tokenizer of generation {current.number}, which is current",
            file=source,
            field="tokenizer_checksum",
            value=used,
            remedy="Assign these items with: trec-semid assign CONFIG.toml --into STORE",
        )


def _read_by(model: str) -> list[ReadGeneration]:
    """Return the generations that a run or a bundle read: of an ensemble, those of its members."""
    reads = _all_read_by(model)
    if not reads:
        remedy = "Leave it out: only models of a store's generations need one. Of a study, name the runs"
        raise DataError("a model that read no generation of a store", file=model, remedy=remedy)
    return reads


def _all_read_by(model: str) -> list[ReadGeneration]:
    if exists(join(model, MANIFEST)) and not exists(join(model, RECORD)):
        ids = read_manifest(model).semantic_ids
        return [ids.generation] if ids and ids.generation else []
    said = RunFolder(model, "").read_json("run.json")
    own = read_before(said)
    runs = _runs_of(model, str(said.get("job")))
    reads = [own] if own else []
    if own and len(runs) < 2:
        return reads
    # What is of several says at most which generation the first one read.
    return reads + [read for run in runs for read in _all_read_by(parse_run(run).uri)]


def _runs_of(model: str, job: str) -> Sequence[str]:
    """Return the runs that an evaluation asked, or that an ensemble is of; none of other runs."""
    if job == "evaluate":
        return [str(one["run"]) for one in RunFolder(model, "").read_json(EVALUATED)["runs"]]
    if job == "retrieve":
        return load_saved(RetrieveConfig, join(model, "config.toml")).retriever.members
    return []


def _told(change: Change) -> str:
    """Return a change in words."""
    back = f" ({change.returned:,} came back)" if change.returned else ""
    told = f"{change.added:,} added{back}, {change.moved:,} moved, {change.removed:,} removed"
    if change.moved and change.drift is not None:
        told += "; other codes at each position: " + ", ".join(f"{share:.1%}" for share in change.drift)
    return told
