"""`daily` with days that are forgotten: tables hold who was there lately, and grow no more."""

import csv
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.test_daily import DAY_S, FIRST, STILL, config_of, told, write_log
from trec_semid.checkpoints.load import read_tensors
from trec_semid.data.schema import Dataset
from trec_semid.jobs import daily

KNOWN = 2


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a log with users and items of the third day and the seventh alone, and a user of the fourth."""
    folder = tmp_path_factory.mktemp("shop")
    write_log(folder)
    with (folder / "events.csv").open("a", newline="") as file:
        for day in (2, 6):
            rows = [(f"again{at}", f"i{28 + at}", at, FIRST + day * DAY_S + at) for at in range(2)]
            csv.writer(file).writerows(rows)
        csv.writer(file).writerow(["quiet", "i3", 1, FIRST + 3 * DAY_S])
    return folder


def weights(entry: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Return the row of each user and item by id, as the day left it."""
    place = Path(entry["checkpoint"])
    step = int(place.name.removeprefix("step-"))
    tensors = read_tensors(str(place.parent), step, "model/")
    data, tables = Dataset(entry["dataset"]), dict[str, dict[str, np.ndarray]]()
    ids = {"t_user_id": data.users(["user_id"])["user_id"], "t_item_id": data.item_ids}
    for table, rows in ids.items():
        (values,) = [value.numpy() for name, value in tensors.items() if name.endswith(f".{table}.weight")]
        tables[table] = dict(zip(rows.to_pylist(), values[-len(rows) :], strict=True))
    return tables


def state_of_users(entry: dict[str, Any]) -> dict[str, float]:
    """Return the sum of squared gradients of each user's row by id, as the day left it."""
    place = Path(entry["checkpoint"])
    tensors = read_tensors(str(place.parent), int(place.name.removeprefix("step-")), "optimizer/fused/")
    (sums,) = [value for name, value in tensors.items() if name.endswith("t_user_id.momentum1")]
    ids = Dataset(entry["dataset"]).users(["user_id"])["user_id"].to_pylist()
    return dict(zip(ids, sums.flatten().tolist()[-len(ids) :], strict=True))


def seen_in(shop: Path, column: int, first: int, last: int) -> set[str]:
    rows = list(csv.reader((shop / "events.csv").open()))[1:]
    return {row[column] for row in rows if first <= (int(row[3]) - FIRST) // DAY_S <= last}


def test_rows_go_with_the_last_known_event_and_come_anew(shop: Path):
    config = config_of(
        shop, "forgets", known_days=KNOWN, keep_last=9, more={"optimizers": STILL}, first_day="2024-01-04"
    )
    days = daily.run(config)["days"]
    kept = [weights(day) for day in days]
    for number, (day, tables) in enumerate(zip(days, kept, strict=True), start=3):
        for name, table, column in (("users", "t_user_id", 0), ("items", "t_item_id", 1)):
            known = seen_in(shop, column, number - KNOWN, number)
            assert tables[table].keys() == known
            before = seen_in(shop, column, number - 1 - KNOWN, number - 1)
            assert day.get(f"gone_{name}") == (len(before - known) if number > 3 else None)
    # Nothing moves at such rates: who stays has the row of the day before, who comes again another one.
    for before, after in pairwise(kept):
        for table in before:
            for one in before[table].keys() & after[table].keys():
                np.testing.assert_array_equal(before[table][one], after[table][one])
    assert days[-1]["day"] == "2024-01-07"
    for one, table in (("again1", "t_user_id"), ("i29", "t_item_id")):
        there = [one in tables[table] for tables in kept]
        assert there == [True, True, False, True]
        assert (kept[0][table][one] != kept[-1][table][one]).any()


def test_who_stays_keeps_the_state_of_the_optimizer(shop: Path):
    config = config_of(shop, "states", known_days=KNOWN, keep_last=9, first_day="2024-01-04")
    states = [state_of_users(day) for day in daily.run(config)["days"]]
    num_quiet = 0
    for number, (before, after) in enumerate(pairwise(states), start=4):
        # Rows of a day are of its own users: who did nothing has what the day before left.
        quiet = before.keys() & after.keys() - seen_in(shop, 0, number, number)
        assert {one: after[one] for one in quiet} == {one: before[one] for one in quiet}
        num_quiet += sum(before[one] > 0 for one in quiet)
        assert all(after[one] >= before[one] for one in before.keys() & after.keys())
    assert num_quiet


def test_where_nothing_is_old_enough_all_is_as_without(shop: Path):
    daily.run(config_of(shop, "plain"))
    daily.run(config_of(shop, "patient", known_days=99))
    names = ("metrics", "known_users", "known_items", "gone_users", "gone_items")
    one, other = (
        [{name: day.get(name) for name in names} for day in told(str(shop / run))]
        for run in ("plain", "patient")
    )
    assert one == other
    assert one[-1]["gone_users"] == one[-1]["gone_items"] == 0
    plain, patient = (weights(told(str(shop / name))[-1]) for name in ("plain", "patient"))
    for table, rows in plain.items():
        assert all((patient[table][name] == row).all() for name, row in rows.items())
    page = (shop / "patient/days.html").read_text()
    assert "users forgotten" in page


def test_datasets_of_other_known_days_are_refused(shop: Path):
    daily.run(config_of(shop, "all", last_day="2024-01-05"))
    config = config_of(
        shop, "some", known_days=3, last_day="2024-01-05", prepare=None, dataset=f"{shop}/all/data/{{day}}"
    )
    with pytest.raises(Exception, match=r"split.day = 2024-01-05, .*split.known_days = 3"):
        daily.run(config)
