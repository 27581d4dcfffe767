"""Datasets that hold the same as another one in other rows, or a little else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.datasets import describe_again
from trec_semid.data.schema import Dataset

FIELDS = {"items": ("genres", "year"), "users": ("age",)}


def rearranged(source: str, folder: Path, *, seed: int = 0, num_new: int = 0) -> str:
    """Write a dataset with its items, users and side-field values in another order; return its folder.

    `num_new` items that nobody has seen are put among the others; they have the content of the first one.
    """
    shutil.copytree(source, folder)
    rng = np.random.default_rng(seed)
    num_items, num_users = Dataset(source).facts.num_items, Dataset(source).facts.num_users
    items = rng.permutation(np.concatenate([np.arange(num_items), np.full(num_new, -1)]))
    users = rng.permutation(num_users)
    _rearrange_table(folder, "items", items, rng)
    _rearrange_table(folder, "users", users, rng)
    for file in (folder / "content").iterdir():
        np.save(file, np.load(file)[np.maximum(items, 0)])
    (part,) = (folder / "events").iterdir()
    events = pq.read_table(part)
    for name, order in (("item_row", items), ("user_row", users)):
        place = np.full(len(order) + 1, -1)
        place[order] = np.arange(len(order))  # that of new ones, at -1, is never asked for
        at = events.schema.get_field_index(name)
        events = events.set_column(at, events.schema.field(at), pa.array(place[events[name].to_numpy()]))
    pq.write_table(events, part)
    facts = Dataset(source).facts
    present = {
        name: known.model_copy(update={"present": int(np.load(folder / f"content/{name}.mask.npy").sum())})
        for name, known in facts.modalities.items()
    }
    describe_again(
        str(folder),
        name="another",
        checksum=f"{seed:0>64}",
        num_items=num_items + num_new,
        modalities=present,
    )
    return str(folder)


def _rearrange_table(folder: Path, entity: str, order: np.ndarray, rng: np.random.Generator) -> None:
    table = pq.read_table(folder / f"{entity}.parquet").take(np.maximum(order, 0))
    one = entity.removesuffix("s")
    ids = [
        f"new-{row}" if order[row] < 0 else known for row, known in enumerate(table[f"{one}_id"].to_pylist())
    ]
    table = table.set_column(0, f"{one}_id", pa.array(ids))
    table = table.set_column(1, "row", pa.array(np.arange(len(order))))
    for name in FIELDS[entity]:
        file = folder / f"fields/{one}_{name}.parquet"
        values = [None, *pq.read_table(file)["value"].to_pylist()]
        new_ids = np.concatenate([[0], 1 + rng.permutation(len(values) - 1)])
        told = [values[old] for old in np.argsort(new_ids)][1:]
        ids = pa.array(np.arange(1, len(values)), pa.int32())
        pq.write_table(pa.table({"id": ids, "value": told}), file)
        at = table.schema.get_field_index(name)
        column = [_renumbered(value, new_ids) for value in table[name].to_pylist()]
        table = table.set_column(at, table.schema.field(at), pa.array(column, table.schema.field(at).type))
    pq.write_table(table, folder / f"{entity}.parquet")


def _renumbered(value: int | list[int], new_ids: np.ndarray) -> int | list[int]:
    return [int(new_ids[one]) for one in value] if isinstance(value, list) else int(new_ids[value])


def changed(source: str, folder: Path, change: str) -> str:
    """Write a dataset that differs in one thing, under a checksum of its own; return its folder."""
    shutil.copytree(source, folder)
    if change == "ids":
        items = pq.read_table(folder / "items.parquet")
        ids = items["item_id"].to_pylist()
        ids[7] = "someone else"
        pq.write_table(items.set_column(0, "item_id", pa.array(ids)), folder / "items.parquet")
    if change in ("content", "mask"):
        file = folder / ("content/text.npy" if change == "content" else "content/image.mask.npy")
        values = np.load(file)
        values[5] = values[5] + 0.01 if change == "content" else not values[5]
        np.save(file, values)
    describe_again(str(folder), name=f"other {change}", checksum=json.dumps(change)[1:-1].ljust(64, "-"))
    return str(folder)
