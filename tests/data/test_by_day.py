"""A dataset of a day holds what was known when the day was over, whatever the log says of later days."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pads
import pytest

from trec_semid.core.errors import DataError
from trec_semid.data.prepare import PrepareConfig, prepare_dataset
from trec_semid.data.schema import Dataset, RowCounts

DAY_S, FIRST = 86_400, 1_704_067_200  # 2024-01-01


def write_log(folder: Path, *, has_future: bool) -> None:
    """Write 8 days of a shop that grows; a future has users, items and prices of its own."""
    rng = np.random.default_rng(3)
    folder.mkdir()
    items = [(f"i{row}", f"{rng.lognormal(2):.2f}", ["red", "blue"][row % 2]) for row in range(30)]
    events = []
    for second in np.sort(rng.integers(0, 8 * DAY_S, 900)):
        item = rng.integers(10 + 2 * (second // DAY_S))
        events.append((f"u{rng.integers(8 + second // DAY_S)}", f"i{item}", rng.integers(2), FIRST + second))
    if has_future:
        items.insert(4, ("future", "1e9", "violet"))
        events += [("u0", "future", 1, FIRST + 8 * DAY_S + at) for at in range(50)]
        events += [(f"new{at}", "i1", 1, FIRST + 9 * DAY_S) for at in range(50)]
        events.insert(0, ("u1", "i2", 1, FIRST + 8 * DAY_S))  # and not in order
    for name, head, rows in (
        ("items", ("sku", "price", "colour"), items),
        ("interactions", ("user", "sku", "label", "time"), events),
    ):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([head, *rows])


def config_of(folder: Path, out: Path, day: str, **changes: Any) -> PrepareConfig:
    interactions = {
        "path": f"{folder}/interactions.csv",
        "user": "user",
        "item": "sku",
        "rating": "label",
        "timestamp": "time",
    }
    price: dict[str, Any] = {"kind": "number", "column": "price", "buckets": 4}
    values: dict[str, Any] = {
        "name": "shop",
        "out": str(out),
        "source": {
            "kind": "tables",
            "interactions": interactions,
            "items": {"path": f"{folder}/items.csv", "id": "sku"},
        },
        "items": {"fields": {"price": price, "colour": {"kind": "category", "column": "colour"}}},
        "filter": {"min_item_events": 1},
        "label": {"kind": "given"},
        "split": {"kind": "by_day", "day": day},
    }
    return PrepareConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("logs")
    write_log(folder / "plain", has_future=False)
    write_log(folder / "future", has_future=True)
    return folder / "plain", folder / "future"


@pytest.mark.parametrize("is_listed", [True, False])
def test_the_future_changes_nothing(logs: tuple[Path, Path], tmp_path: Path, is_listed: bool):
    facts = []
    for log in logs:
        config = config_of(log, tmp_path / log.name, "2024-01-08")
        more = {} if is_listed else {"source": config.source.model_dump() | {"items": None}, "items": {}}
        out = str(tmp_path / "data")  # one place, which the description names
        values = config.model_dump() | more | {"filter": {"min_item_events": int(is_listed)}, "out": out}
        values["source"]["interactions"]["path"] = str(tmp_path / "log.csv")
        (tmp_path / "log.csv").write_bytes((log / "interactions.csv").read_bytes())
        if is_listed:
            values["source"]["items"]["path"] = str(tmp_path / "items.csv")
            (tmp_path / "items.csv").write_bytes((log / "items.csv").read_bytes())
        facts.append(prepare_dataset(PrepareConfig.model_validate(values)))
    assert facts[0].checksum == facts[1].checksum
    assert facts[0].splits == facts[1].splits
    assert facts[1].dropped["later"].events == 101
    assert facts[0].num_events == 900


def test_items_and_users_come_with_their_first_event(logs: tuple[Path, Path], tmp_path: Path):
    sizes = []
    for day in (1, 4, 8):
        facts = prepare_dataset(config_of(logs[1], tmp_path / str(day), f"2024-01-0{day}"))
        data = Dataset(str(tmp_path / str(day)))
        events = data.events(["user_row", "item_row", "timestamp", "split"])
        days = (events["timestamp"].to_numpy() - FIRST) // DAY_S
        assert days.max() == day - 1
        parts = np.array(events["split"].to_pylist())
        assert (parts == np.where(days == day - 1, "test", np.where(days == day - 2, "valid", "train"))).all()
        for name, size in (("user_row", facts.num_users), ("item_row", facts.num_items)):
            assert np.unique(events[name]).tolist() == list(range(size))
        sizes.append((facts.num_users, facts.num_items))
    assert sizes[0] < sizes[1] < sizes[2]
    assert sizes[0][1] < sizes[1][1]


def test_a_day_without_events_is_refused_by_name(logs: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(DataError, match=r"split 'test' is empty.*2024-02-01") as refused:
        prepare_dataset(config_of(logs[0], tmp_path / "data", "2024-02-01"))
    assert refused.value.field == "split.day"


def test_given_edges_are_the_same_whatever_the_items_are(logs: tuple[Path, Path], tmp_path: Path):
    price = {"kind": "number", "column": "price", "edges": [5, 10.5]}
    for day in (2, 8):
        out = tmp_path / str(day)
        prepare_dataset(config_of(logs[0], out, f"2024-01-0{day}", items={"fields": {"price": price}}))
        data = Dataset(str(out))
        assert data.vocabulary("item_price").to_pylist() == [None, "< 5", "5 to < 10.5", ">= 10.5"]
        rows = list(csv.reader((logs[0] / "items.csv").open()))[1:]
        prices = {sku: float(price) for sku, price, _ in rows}
        table = data.items(["item_id", "price"])
        known = np.array([prices[item] for item in table["item_id"].to_pylist()])
        assert table["price"].to_pylist() == (1 + np.digitize(known, [5, 10.5])).tolist()
    with pytest.raises(ValueError, match="buckets and edges"):
        config_of(logs[0], out, "2024-01-08", items={"fields": {"price": {**price, "buckets": 4}}})
    with pytest.raises(ValueError, match="edges: each has to be larger"):
        config_of(logs[0], out, "2024-01-08", items={"fields": {"price": {**price, "edges": [2, 2]}}})


@pytest.mark.parametrize("known_days", [2, 50])
def test_what_happened_before_the_known_days_is_as_if_it_had_never_happened(
    logs: tuple[Path, Path], tmp_path: Path, known_days: int
):
    first, *rows = list(csv.reader((logs[0] / "interactions.csv").open()))
    since = FIRST + (7 - known_days) * DAY_S  # the day is the eighth
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "items.csv").write_bytes((logs[0] / "items.csv").read_bytes())
    with (cut / "interactions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([first, *(row for row in rows if int(row[3]) >= since)])
    rule = {"kind": "by_day", "day": "2024-01-08"}
    ours = prepare_dataset(
        config_of(logs[0], tmp_path / "ours", "x", split={**rule, "known_days": known_days})
    )
    prepare_dataset(config_of(cut, tmp_path / "theirs", "x", split=rule))
    for name in ("items.parquet", "users.parquet", "events"):
        one, other = (pads.dataset(tmp_path / each / name).to_table() for each in ("ours", "theirs"))
        assert one.equals(other), name
    num_earlier = sum(int(row[3]) < since for row in rows)
    assert ours.dropped.get("earlier", RowCounts()).events == num_earlier
    assert (num_earlier > 0) == (known_days == 2)
    assert ours.read.events == len(rows) == ours.num_events + num_earlier


def test_days_that_cannot_be_known_are_refused_and_a_log_that_is_too_old_says_so(
    logs: tuple[Path, Path], tmp_path: Path
):
    rule = {"kind": "by_day", "day": "2024-01-08"}
    with pytest.raises(ValueError, match="known_days = 2: what a step of num_days = 3 days"):
        config_of(logs[0], tmp_path, "x", split={**rule, "num_days": 3, "known_days": 2})
    with pytest.raises(ValueError, match="before all calendars"):
        config_of(logs[0], tmp_path, "x", split={**rule, "known_days": 1_000_000})
    late = {**rule, "day": "2025-01-08", "known_days": 9}
    with pytest.raises(DataError, match=r"0 later, 900 earlier.*give more known_days") as refused:
        prepare_dataset(config_of(logs[0], tmp_path / "late", "x", split=late))
    assert refused.value.field == "split.day"


def test_an_item_leaves_with_fewer_known_events_than_the_filter_wants(
    logs: tuple[Path, Path], tmp_path: Path
):
    rule = {"kind": "by_day", "day": "2024-01-08", "known_days": 1}
    prepare_dataset(config_of(logs[0], tmp_path / "all", "x", split=rule))
    prepare_dataset(config_of(logs[0], tmp_path / "some", "x", split=rule, filter={"min_item_events": 6}))
    whole, some = (Dataset(str(tmp_path / name)) for name in ("all", "some"))
    counts = np.bincount(whole.events(["item_row"])["item_row"].to_numpy())
    often = [item for item, count in zip(whole.item_ids.to_pylist(), counts, strict=True) if count >= 6]
    assert 0 < len(often) < len(counts)
    assert some.item_ids.to_pylist() == often
