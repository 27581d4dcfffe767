from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.raw_tables import T0, config
from trec_semid.data.histories import HistoryConfig, index_histories, read_events
from trec_semid.data.prepare import prepare_dataset
from trec_semid.data.raw.times import PER_SECOND, UNITS
from trec_semid.data.schema import SPLITS, Dataset
from trec_semid.jobs.prepare import summary

STEPS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
FORMS = ["integers", "floats", "text", "timestamps", "zoned", "pattern"]


def stated(ticks, unit, form):
    """Times that are `ticks` of a unit after T0, as a column of one form, and how a config reads it."""
    per = STEPS[unit]
    exact = [T0 + Fraction(tick, per) for tick in ticks]
    if form == "integers":
        return pa.array([T0 * per + tick for tick in ticks]), {"timestamp_unit": unit}
    if form == "floats":
        return pa.array([float(each) for each in exact]), {}
    if form == "text":
        digits = len(str(per)) - 1
        return pa.array(
            [f"{T0 + tick // per}.{tick % per:0{digits}}" if digits else str(T0 + tick) for tick in ticks]
        ), {}
    if form == "pattern":
        clock = np.array([T0 * 10**9 + tick * (10**9 // per) for tick in ticks], "datetime64[ns]")
        return pa.array([str(each) for each in clock]), {"timestamp_format": "%Y-%m-%dT%H:%M:%S.%f"}
    kind = pa.timestamp(unit, "Asia/Kolkata" if form == "zoned" else None)
    return pa.array([T0 * per + tick for tick in ticks], kind), {}


@settings(max_examples=40)
@given(
    st.sampled_from(UNITS),
    st.sampled_from(FORMS),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 12)), min_size=12, max_size=30),
    st.integers(1, 5),
)
def test_histories_are_what_happened_strictly_before_in_any_unit(tmp_path_factory, unit, form, rows, max_len):
    # Doubles of this size are 0.24 microseconds apart: they tell no nanoseconds.
    unit = "us" if form == "floats" and unit == "ns" else unit
    folder = tmp_path_factory.mktemp("times")
    users, items, ticks = map(list, zip(*rows, strict=True))
    column, reads = stated(ticks, unit, form)
    table = pa.table({"user": list(map(str, users)), "item": list(map(str, items)), "time": column})
    pq.write_table(table, folder / "log.parquet")
    log = {"path": str(folder / "log.parquet"), "user": "user", "item": "item", "timestamp": "time", **reads}
    made = config(
        folder,
        source={"kind": "tables", "interactions": log},
        items={},
        users={},
        label={"kind": "all_positive"},
        split={"kind": "per_user_temporal", "test": 1, "valid": 1},
        ties="published",
    )
    per = STEPS[unit]
    if max(users.count(user) for user in set(users)) < 3:
        return
    facts = prepare_dataset(made)
    exact = [T0 + Fraction(tick, per) for tick in ticks]
    dataset = Dataset(made.out)
    written = dataset.events().to_pylist()
    scale = PER_SECOND[facts.timestamp_unit]
    order = sorted(range(len(rows)), key=lambda row: (exact[row], row))
    assert [Fraction(event["timestamp"], scale) for event in written] == [exact[row] for row in order]
    assert facts.timestamp_unit == next(
        each for each in UNITS if all((time * PER_SECOND[each]).denominator == 1 for time in exact)
    )
    pairs = [(users[row], ticks[row]) for row in range(len(rows))]
    assert facts.tied_events == sum(pairs.count(pair) > 1 for pair in pairs)
    events = read_events(dataset)
    found = index_histories(events, HistoryConfig(max_len=max_len))["online"].before(
        events.users, events.when, max_len
    )
    names = dataset.item_ids.to_pylist()
    for at, row in enumerate(order):
        before = [items[other] for other in order if users[other] == users[row] and exact[other] < exact[row]]
        start, length = found.starts[at], found.lengths[at]
        assert [names[item] for item in found.values[start : start + length]] == [
            str(item) for item in before[-max_len:]
        ]


def test_events_within_one_second_have_each_other_in_their_histories(tmp_path):
    log = "user,item,time\n" + "".join(f"u,i{n},{T0}.{n}00\n" for n in range(1, 5))
    (tmp_path / "log.csv").write_text(log)
    made = config(
        tmp_path,
        source={
            "kind": "tables",
            "interactions": {
                "path": str(tmp_path / "log.csv"),
                "user": "user",
                "item": "item",
                "timestamp": "time",
            },
        },
        items={},
        users={},
        label={"kind": "all_positive"},
        split={"kind": "leave_one_out"},
    )
    facts = prepare_dataset(made)
    events = read_events(Dataset(made.out))
    histories = index_histories(events, HistoryConfig())["online"].before(events.users, events.when, 50)
    assert histories.lengths.tolist() == [0, 1, 2, 3]
    assert (facts.timestamp_unit, facts.tied_events) == ("ms", 0)
    assert (facts.first_time, facts.last_time) == ("2001-09-09T01:46:40.100Z", "2001-09-09T01:46:40.400Z")
    assert "times: 2001-09-09T01:46:40.100Z to 2001-09-09T01:46:40.400Z" in summary(facts)


@pytest.mark.parametrize("unit", UNITS)
def test_a_boundary_of_a_global_split_lies_between_moments(tmp_path, unit):
    per = STEPS[unit]
    ids = [str(n % 5) for n in range(100)]
    times = pa.array([T0 * per + n // 2 for n in range(100)])  # two events a moment
    pq.write_table(pa.table({"user": ids, "item": ids[::-1], "time": times}), tmp_path / "log.parquet")
    made = config(
        tmp_path,
        source={
            "kind": "tables",
            "interactions": {
                "path": str(tmp_path / "log.parquet"), "user": "user", "item": "item", "timestamp": "time",
                "timestamp_unit": unit,
            },
        },
        items={},
        users={},
        label={"kind": "all_positive"},
    )  # fmt: skip
    prepare_dataset(made)
    dataset = Dataset(made.out)
    sizes = [dataset.events(split=part).num_rows for part in SPLITS]
    assert sizes == [80, 10, 10]  # 81 and 90 fall on the second event of a moment and on a first one
