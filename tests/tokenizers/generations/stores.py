"""Stores of small maps, published without the verb around it."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from trec_semid.core.ids import id_array
from trec_semid.core.paths import join
from trec_semid.tokenizers.generations.drafts import Batch, Source, appended, retrained
from trec_semid.tokenizers.generations.items import NewItems, Removal, load_items
from trec_semid.tokenizers.generations.manifest import Generation
from trec_semid.tokenizers.generations.publish import publish
from trec_semid.tokenizers.generations.store import is_store, nothing_done, open_store
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds

Codes = Mapping[str, tuple[int, ...]]


def write_map(uri: str, codes: Codes, sizes: Sequence[int]) -> str:
    array = np.array(list(codes.values()), np.int32).reshape(len(codes), len(sizes))
    SemanticIds(id_array(codes), array, tuple(sizes)).save(uri)
    return uri


def retrain(uri: str, codes: Codes, sizes: Sequence[int], slots: int | None = None) -> Generation:
    """Publish a map as a lineage of its own."""
    file = write_map(f"{uri}-map.parquet", codes, sizes)
    store = open_store(uri) if is_store(uri) else None
    seen = store.newest() if store else nothing_done()
    return publish(uri, seen, retrained(store, seen, Source(file, file, None, "", "", 0), slots))


def append(uri: str, codes: Codes, removed: Sequence[str] = ()) -> Generation:
    """Publish additions and removals."""
    store = open_store(uri)
    seen = store.newest()
    new = (
        NewItems(id_array(codes), np.array(list(codes.values()), np.int32), "new.parquet") if codes else None
    )
    removal = Removal(id_array(removed), "gone.parquet") if removed else None
    batch = Batch(new, removal, "test", f"{sorted(codes)} {sorted(removed)}")
    return publish(uri, seen, appended(store, seen, batch))


def tuples_of(uri: str, number: int) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Return the items that a generation has, and its tombstones."""
    items = load_items(open_store(uri).folder(number))
    live: dict[str, tuple[int, ...]] = {}
    gone: dict[str, tuple[int, ...]] = {}
    for item, codes, removed in zip(
        items.item_ids.to_pylist(), items.codes.tolist(), items.removed.tolist(), strict=True
    ):
        (gone if removed else live)[item] = tuple(codes)
    return live, gone


def ids_file(uri: str, ids: Sequence[str]) -> str:
    import pyarrow.parquet as pq

    from trec_semid.core.paths import arrow_filesystem

    fs, inner = arrow_filesystem(join(uri))
    pq.write_table(pa.table({"item_id": pa.array(ids, pa.string())}), inner, filesystem=fs)
    return uri
