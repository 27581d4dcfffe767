"""The dataset that tests write by hand is what `prepare` makes of the same raw tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import write_small_dataset
from trec_semid.data.prepare import PrepareConfig, prepare_dataset
from trec_semid.data.schema import Dataset

Pair = tuple[Dataset, Dataset]
SEED = 2
"""Of a world in which no events around the ends of the splits have one time: `prepare` cuts between times."""


def raw_tables(dataset: Dataset, folder: Path) -> None:
    """Write what `prepare` reads for a dataset: ids and texts instead of rows and numbers of values."""
    items, users, events = dataset.items(), dataset.users(), dataset.events()
    ids = {name: table[f"{name}_id"] for name, table in (("item", items), ("user", users))}
    log = {name: column.take(events[f"{name}_row"]) for name, column in ids.items()}
    pq.write_table(pa.table({**log, "y": events["label"], "t": events["timestamp"]}), folder / "log.parquet")
    genres = dataset.vocabulary("item_genres").to_pylist()
    columns: dict[str, Any] = {
        "item": items["item_id"],
        "title": items["title"],
        "genres": [[genres[each] for each in row] for row in items["genres"].to_pylist()],
        "year": values_of(dataset, "item", "year"),
    }
    for name in dataset.facts.modalities:
        vectors, present = dataset.content(name), dataset.content_mask(name)
        rows = [list(row) if has else None for row, has in zip(vectors, present, strict=True)]
        columns[name] = pa.array(rows, pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), folder / "items.parquet")
    pq.write_table(
        pa.table({"user": users["user_id"], "age": values_of(dataset, "user", "age")}),
        folder / "users.parquet",
    )


def values_of(dataset: Dataset, entity: str, field: str) -> list[str | None]:
    vocabulary = dataset.vocabulary(f"{entity}_{field}").to_pylist()
    table = dataset.items() if entity == "item" else dataset.users()
    return [vocabulary[each] for each in table[field].to_pylist()]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("datasets")
    by_hand = Dataset(write_small_dataset(str(folder / "by-hand"), seed=SEED))
    raw_tables(by_hand, folder)
    config = {
        "name": "small",
        "out": str(folder / "prepared"),
        "source": {
            "kind": "tables",
            "interactions": {
                "path": f"{folder}/log.parquet",
                "user": "user",
                "item": "item",
                "rating": "y",
                "timestamp": "t",
            },
            "items": {"path": f"{folder}/items.parquet", "id": "item"},
            "users": {"path": f"{folder}/users.parquet", "id": "user"},
        },
        "label": {"kind": "given"},
        "ties": "published",
        "split": {"kind": "global_temporal"},
        "items": {
            "readable": {"title": "title"},
            "fields": {
                "genres": {"kind": "category", "column": "genres"},
                "year": {"kind": "category", "column": "year"},
            },
        },
        "users": {"fields": {"age": {"kind": "category", "column": "age"}}},
        "content": {name: {"kind": "column", "column": name} for name in by_hand.facts.modalities},
    }
    prepare_dataset(PrepareConfig.model_validate(config))
    return by_hand, Dataset(str(folder / "prepared"))


def test_every_file_but_the_events_is_the_same_to_the_byte(pair: Pair):
    by_hand, prepared = (dataset.facts.files for dataset in pair)
    assert by_hand.keys() == prepared.keys() - {"config.toml"}
    assert {name for name, file in by_hand.items() if prepared[name] != file} == {"events/part-00000.parquet"}


def test_events_hold_the_same_in_columns_of_the_same_types(pair: Pair):
    by_hand, prepared = (dataset.events() for dataset in pair)
    assert by_hand.schema.types == prepared.schema.types
    apart = {"behaviour"}  # the one kind of events has another name
    for name in set(by_hand.column_names) - apart:
        assert by_hand[name].to_pylist() == prepared[name].to_pylist(), name


def test_both_count_the_same(pair: Pair):
    by_hand, prepared = (dataset.facts for dataset in pair)
    counted = ("num_users", "num_items", "num_events", "splits", "has_timestamps", "timestamp_unit")
    assert {name: getattr(by_hand, name) for name in counted} == {
        name: getattr(prepared, name) for name in counted
    }
    for kind in ("item_fields", "user_fields"):
        sizes = [
            {name: (field.size, field.is_list) for name, field in getattr(facts, kind).items()}
            for facts in (by_hand, prepared)
        ]
        assert sizes[0] == sizes[1]
    for name, modality in by_hand.modalities.items():
        assert prepared.modalities[name] == modality.model_copy(update={"source": f"column {name}"})
        np.testing.assert_array_equal(pair[0].content(name), pair[1].content(name))
