"""A small dataset folder with a signal that can be learned, for the tests of every room."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trec_semid.core.paths import join, make_folder, open_file, read_bytes, write_bytes
from trec_semid.data.folder import checksum, describe_files, write_description
from trec_semid.data.schema import (
    EVENT_SCHEMA,
    SPLITS,
    DatasetFacts,
    FieldFacts,
    ModalityFacts,
    Split,
    SplitFacts,
)
from trec_semid.runtime.fingerprints import read_signed

NUM_CLUSTERS = 4


@dataclass
class World:
    """What the dataset was drawn from."""

    user_cluster: np.ndarray
    item_cluster: np.ndarray
    rng: np.random.Generator


def write_small_dataset(
    folder: str, *, num_users: int = 60, num_items: int = 40, seed: int = 0, with_time: bool = True
) -> str:
    """Write a dataset of about 35 events a user and return its folder.

    Users and items belong to four clusters; a user likes items of the own cluster with probability 0.9
    and others with 0.15, so AUC of a perfect ranker is near 0.87. The content vectors tell the cluster.
    The last two users and the last two items have no training event. Item fields: `genres` (list; the
    cluster and noise) and `year`; user field: `age`. Modalities: `text` (16 wide, all items) and `image`
    (8 wide, every fifth item missing). Events have equal timestamps now and then, or none at all.
    """
    rng = np.random.default_rng(seed)
    world = World(rng.integers(NUM_CLUSTERS, size=num_users), rng.integers(NUM_CLUSTERS, size=num_items), rng)
    events = _events(world, with_time)
    make_folder(folder)
    _write_entities(folder, world)
    modalities = {
        "text": _write_content(folder, "text", 16, np.ones(num_items, bool), world),
        "image": _write_content(folder, "image", 8, np.arange(num_items) % 5 != 4, world),
    }
    _write_table(folder, "events/part-00000.parquet", events)
    files = describe_files(folder)
    facts = DatasetFacts(
        name="small",
        num_users=num_users,
        num_items=num_items,
        num_events=events.num_rows,
        modalities=modalities,
        item_fields={
            "genres": FieldFacts(kind="category", size=NUM_CLUSTERS + 3, is_list=True),
            "year": FieldFacts(kind="number", size=6),
        },
        user_fields={"age": FieldFacts(kind="number", size=5)},
        split_rule="global order: first 81 % train, next 9 % valid, rest test",
        splits=_split_facts(events),
        tie_rule="equal timestamps keep the order of the file" if with_time else "ties unknown",
        tied_events=None,
        label_rule="drawn",
        has_timestamps=with_time,
        source={"kind": "drawn", "seed": seed},
        timestamp_unit="s" if with_time else None,
        files=files,
        checksum=checksum(files),
    )
    write_description(folder, facts)
    return folder


def describe_again(folder: str, **changes: Any) -> None:
    """Write `dataset.json` of a folder that a test changed, as if it had been prepared like this.

    `changes` replace facts; sizes, sha256 and numbers of events are those of the files.
    """
    place = join(folder, "dataset.json")
    facts = DatasetFacts.model_validate(read_signed(read_bytes(place)))
    with open_file(join(folder, "events/part-00000.parquet")) as file:
        parts = pq.read_table(file, columns=["split"])["split"].cast(pa.string()).to_pylist()
    splits = {
        name: part.model_copy(update={"events": parts.count(name)}) for name, part in facts.splits.items()
    }
    known = {"files": describe_files(folder), "num_events": len(parts), "splits": splits}
    write_description(folder, facts.model_copy(update=known | changes))


def _events(world: World, with_time: bool) -> pa.Table:
    rng, num_users, num_items = world.rng, len(world.user_cluster), len(world.item_cluster)
    num_events = 35 * num_users
    cut, valid_cut = int(num_events * 0.81), int(num_events * 0.9)
    split = np.repeat(np.arange(3, dtype=np.int8), [cut, valid_cut - cut, num_events - valid_cut])
    # Two users and two items appear after training only.
    users = np.where(
        split == 0, rng.integers(num_users - 2, size=num_events), rng.integers(num_users, size=num_events)
    )
    items = np.where(
        split == 0, rng.integers(num_items - 2, size=num_events), rng.integers(num_items, size=num_events)
    )
    liked = np.where(world.user_cluster[users] == world.item_cluster[items], 0.9, 0.15)
    labels = (rng.random(num_events) < liked).astype(np.float32)
    times = np.sort(rng.integers(1_000_000_000, 1_000_000_000 + num_events * 2, size=num_events))
    columns: dict[str, Any] = {
        "user_row": pa.array(users, pa.int64()),
        "item_row": pa.array(items, pa.int64()),
        "label": pa.array(labels, pa.float32()),
        "timestamp": pa.array(times, pa.int64()) if with_time else pa.nulls(num_events, pa.int64()),
        "order": pa.array(np.arange(num_events), pa.int64()),
        "split": pa.DictionaryArray.from_arrays(pa.array(split), pa.array(list(SPLITS))),
        "behaviour": pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(num_events, np.int8)), pa.array(["impression"])
        ),
    }
    return pa.table(columns, schema=EVENT_SCHEMA)


def _write_entities(folder: str, world: World) -> None:
    rng, num_users, num_items = world.rng, len(world.user_cluster), len(world.item_cluster)
    noise = rng.integers(0, 3, size=num_items)  # 0 = the item has no second genre
    genres = [
        [int(cluster) + 1] + ([NUM_CLUSTERS + int(extra)] if extra else [])
        for cluster, extra in zip(world.item_cluster, noise, strict=True)
    ]
    genres[0] = []  # an item without any genre
    items = {
        "item_id": pa.array([f"i{row:03d}" for row in range(num_items)]),
        "row": pa.array(np.arange(num_items), pa.int64()),
        "title": pa.array([f"Item {row} of cluster {c}" for row, c in enumerate(world.item_cluster)]),
        "genres": pa.array(genres, pa.list_(pa.int32())),
        "year": pa.array(rng.integers(0, 6, size=num_items), pa.int32()),
    }
    users = {
        "user_id": pa.array([f"u{row:03d}" for row in range(num_users)]),
        "row": pa.array(np.arange(num_users), pa.int64()),
        "age": pa.array(rng.integers(0, 5, size=num_users), pa.int32()),
    }
    _write_table(folder, "items.parquet", pa.table(items))
    _write_table(folder, "users.parquet", pa.table(users))
    for name, values in {
        "item_genres": [f"genre {cluster}" for cluster in range(NUM_CLUSTERS)] + ["loud", "quiet"],
        "item_year": [str(year) for year in range(1990, 1995)],
        "user_age": ["18", "25", "35", "50"],
    }.items():
        ids = pa.array(np.arange(1, len(values) + 1), pa.int32())  # 0 is missing, and not written
        _write_table(folder, f"fields/{name}.parquet", pa.table({"id": ids, "value": values}))


def _write_content(folder: str, name: str, dim: int, present: np.ndarray, world: World) -> ModalityFacts:
    centres = world.rng.normal(size=(NUM_CLUSTERS, dim))
    vectors = centres[world.item_cluster] + 0.3 * world.rng.normal(size=(len(present), dim))
    vectors[~present] = 0
    _write_array(folder, f"content/{name}.npy", vectors.astype(np.float32))
    _write_array(folder, f"content/{name}.mask.npy", present)
    return ModalityFacts(dim=dim, dtype="float32", present=int(present.sum()), source="drawn")


def _split_facts(events: pa.Table) -> dict[Split, SplitFacts]:
    frame = events.select(["user_row", "item_row", "label", "split"]).to_pandas()
    train = frame[frame.split == "train"]
    facts: dict[Split, SplitFacts] = {}
    for split in SPLITS:
        part = frame[frame.split == split]
        users, items = set(part.user_row), set(part.item_row)
        facts[split] = SplitFacts(
            events=len(part),
            users=len(users),
            items=len(items),
            unseen_users=len(users - set(train.user_row)),
            unseen_items=len(items - set(train.item_row)),
            unseen_item_events=int((~part.item_row.isin(train.item_row)).sum()),
            positives=int((part.label > 0.5).sum()),
        )
    return facts


def _write_table(folder: str, name: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_bytes(join(folder, name), buffer.getvalue())


def _write_array(folder: str, name: str, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(join(folder, name), buffer.getvalue())
