"""Semantic IDs for the items of a dataset: checked, matched by item id, or refused before any training."""

import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa

from trec_semid.checkpoints.bundle_files import MANIFEST, verify_bundle
from trec_semid.core.arrays import Ints
from trec_semid.core.errors import DataError
from trec_semid.core.ids import rows_of
from trec_semid.core.paths import exists, join, parent_of
from trec_semid.data.schema import Dataset
from trec_semid.tokenizers.generations.items import StoredItems, load_items
from trec_semid.tokenizers.generations.manifest import Generation, generation_of
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.inputs.shards import my_rank, refusing_together
from trec_semid.tokenizers.maps.origin import Named, Origin, content_checksum
from trec_semid.tokenizers.maps.record import RECORD, read_record, verify_record
from trec_semid.tokenizers.maps.semantic_ids import FILE, SemanticIds, semantic_ids_file

_log = logging.getLogger(__name__)


def verified_file(place: str) -> str:
    """Return the map's file that a config names, once it and the tokenizer beside it are seen to be whole.

    In a process group every rank must call this. A file in a folder without a record states its own checksum
    where we wrote it, which reading compares.

    Args:
        place: a finished run folder, a bundle, a generation of a store, or a `.parquet` file.

    Raises:
        DataError: a file is missing or damaged, or the run is not finished.
    """
    file = semantic_ids_file(place)
    folder = parent_of(file)
    has_record = any(exists(join(folder, name)) for name in (RECORD, MANIFEST))
    if exists(file) and file == join(folder, FILE) and (has_record or not place.endswith(".parquet")):
        verify_codes(folder)
    return file


def verify_codes(folder: str) -> Named:
    """Check map, tokenizer and quality of a run folder or a bundle; return the dataset they are of.

    In a process group every rank must call this.

    Raises:
        DataError: a file is missing, or is not what was written.
    """
    if exists(join(folder, MANIFEST)) and not exists(join(folder, RECORD)):
        manifest = verify_bundle(folder)
        return Named(manifest.dataset, manifest.dataset_checksum)
    record = verify_record(folder)
    return Named(record.dataset, record.dataset_checksum)


def seed_of(folder: str) -> int:
    """Return the seed of a run folder; 0 of a bundle, which does not say."""
    return read_record(folder).seed if exists(join(folder, RECORD)) else 0


def read_semantic_ids(place: str, dataset: Dataset) -> SemanticIds:
    """Read semantic IDs in the row order of a dataset; in a process group every rank must call this.

    Codes that say what they were computed from must be of just these items with just this content, in any
    order. Others, such as published ones, are matched by item ids alone. A generation of a store may have
    more items than the dataset; those of the lineage's first generation must have the same content, which is
    compared where the dataset has all of them, and a warning says where not.

    Raises:
        DataError: a file is damaged, an item has no codes, or the codes are of other items or other content.
    """
    file = verified_file(place)
    of = Named(dataset.facts.name, dataset.facts.checksum)
    generation = None if place.endswith(".parquet") else generation_of(parent_of(file))
    if generation:
        return _of_generation(generation, dataset, of, file)
    ids = SemanticIds.load(file)
    if ids.origin is None:
        matched = ids.in_order(dataset.item_ids, file)
        more = len(ids.item_ids) - len(matched.item_ids)
        beside = f"; {more:,} items of the file are not in it" if more else ""
        told = "semantic IDs of %s do not say what they were computed from: matched to %s by item ids alone%s"
        _log.info(told, file, of, beside)
        return matched
    _expect_same_items(ids, ids.origin, of, dataset, file)
    if ids.origin.dataset_checksum != of.checksum:
        _expect_same_content(ids.origin, of, dataset, file)
        _log.info("semantic IDs of %s have the items and the content of %s", _named(ids.origin), of)
    if not ids.item_ids.equals(dataset.item_ids):
        _log.info("semantic IDs of %s are put into the order of %s", _named(ids.origin), of)
    return ids.in_order(dataset.item_ids, file)


def _expect_same_items(ids: SemanticIds, origin: Origin, of: Named, dataset: Dataset, file: str) -> None:
    has, needs = ids.item_ids, dataset.item_ids
    for items, others, told in (
        (needs, has, "items have no semantic ID"),
        (has, needs, "items are not in the dataset"),
    ):
        absent = np.flatnonzero(rows_of(items, others) < 0)
        if len(absent):
            first = items[int(absent[0])].as_py()
            raise _other(f"{len(absent):,} {told}, the first '{first}'", origin, of, dataset, file)


def _of_generation(generation: Generation, dataset: Dataset, of: Named, file: str) -> SemanticIds:
    """Read a generation in the row order of a dataset."""
    items, origin = load_items(parent_of(file)), generation.origin
    _expect_items(generation, items, dataset, file)
    if origin and origin.dataset_checksum != of.checksum:
        first = items.item_ids.take(pa.array(np.flatnonzero(items.added == generation.root)))
        rows = rows_of(first, dataset.item_ids)
        if (rows >= 0).all():
            _expect_same_content(origin, of, dataset, file, rows)
        else:
            told = "%s: %s lacks items of %s, so that content is not compared: matched by item ids alone"
            _log.warning(told, file, of, _named(origin))
    live = items.live
    more = len(live.item_ids) - dataset.facts.num_items
    if more:
        _log.info("%s: %s items of generation %d are not in %s", file, f"{more:,}", generation.number, of)
    # Later items are of no dataset that this says; where it is the very same one, there are none of them.
    known = origin if origin and origin.dataset_checksum == of.checksum else None
    ids = SemanticIds(live.item_ids, live.codes, generation.sizes, known)
    return replace(ids.in_order(dataset.item_ids, file), generation=generation)


def _expect_items(generation: Generation, items: StoredItems, dataset: Dataset, file: str) -> None:
    """Refuse a dataset with items that the generation lacks; those that were removed are named as such."""
    rows = rows_of(dataset.item_ids, items.item_ids)
    is_gone = rows >= 0
    is_gone[is_gone] = items.removed[rows[is_gone]] > 0
    absent = np.flatnonzero((rows < 0) | is_gone)
    if not len(absent):
        return
    row, number = int(absent[0]), generation.number
    item = dataset.item_ids[row].as_py()
    if is_gone[row]:
        since = int(items.removed[rows[row]])
        why, remedy = f"generation {since} removed it", "Name a generation before that one, as STORE@NUMBER"
    else:
        why, remedy = "it was never added", "Add such items: trec-semid assign CONFIG.toml --into STORE"
    raise DataError(
        f"generation {number} has no semantic ID for {len(absent):,} items of {dataset.uri}; for the first, "
        f"{why}",
        file=file,
        field="item_id",
        value=item,
        remedy=f"{remedy}; or prepare the dataset without them",
    )


def _expect_same_content(
    origin: Origin, of: Named, dataset: Dataset, file: str, rows: Ints | None = None
) -> None:
    """Refuse content that is another than the tokenizer read; of (n,) rows, or of all items."""
    with refusing_together():
        # Rank 0 alone reads the content; where it refuses, all do.
        fault = _other_content(origin, dataset, rows) if my_rank() == 0 else None
        if fault:
            told = f"their content '{fault}' is another under the same item ids"
            raise _other(told, origin, of, dataset, file)


def _other_content(origin: Origin, dataset: Dataset, rows: Ints | None) -> str | None:
    """Return the first modality that is another than the tokenizer read; None where all are the same.

    A dataset without a modality has no other content: its items are matched by their ids.
    """
    for name, known in origin.content.items():
        if name in dataset.facts.modalities:
            catalogue = ItemContents({name: dataset.content(name)}, {name: dataset.content_mask(name)})
            if content_checksum(name, dataset.item_ids, catalogue, rows) != known:
                return name
    return None


def _named(origin: Origin) -> Named:
    return Named(origin.dataset, origin.dataset_checksum)


def _other(problem: str, origin: Origin, of: Named, dataset: Dataset, file: str) -> DataError:
    return DataError(
        f"semantic IDs of dataset {_named(origin)}, not of {of}: {problem}",
        file=file,
        field="item_id",
        remedy=f"Tokenize {dataset.uri}, or name the dataset that they were computed from",
    )
