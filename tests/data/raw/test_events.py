import datetime as dt
import tomllib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trec_semid.core.config import dump_toml
from trec_semid.core.errors import DataError
from trec_semid.data.raw.events import EventColumns, collect_events
from trec_semid.data.raw.formats.chunks import Chunk

COLUMNS = EventColumns(user="u", item="i", rating="r", timestamp="t", order="o", behaviour="b")
ROWS = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 5)), min_size=1, max_size=30)


def chunks(rows, sizes, *, encoded=False):
    start = 0
    for size in sizes:
        part = rows[start : start + size]
        users = pa.array([row[0] for row in part], pa.string())
        table = {
            "u": users.dictionary_encode() if encoded else users,
            "i": pa.array([row[1] for row in part], pa.int64()),
            "r": pa.array([1.5] * len(part)),
            "t": pa.array([10**9 + 10] * len(part), pa.int64()),
            "o": pa.array([str(start)] * len(part)),
            "b": pa.array(["view"] * len(part)),
        }
        yield Chunk(pa.table(table), f"file-{start}", 5, 0)
        start += size


@settings(deadline=None)
@given(ROWS, st.integers(0, 30), st.booleans())
def test_ids_are_codes_by_first_appearance_however_the_rows_are_cut(rows, cut, encoded):
    cut = min(cut, len(rows))
    events = collect_events(chunks(rows, [cut, len(rows) - cut], encoded=encoded), COLUMNS)
    users, items = events.user_ids.to_pylist(), events.item_ids.to_pylist()
    assert users == list(dict.fromkeys(row[0] for row in rows))
    assert [users[code] for code in events.users] == [row[0] for row in rows]
    assert [items[code] for code in events.items] == [str(row[1]) for row in rows]
    assert (events.times.unit, events.times.values.tolist()) == ("s", [10**9 + 10] * len(rows))
    assert events.positions.tolist() == [0] * cut + [cut] * (len(rows) - cut)
    assert events.behaviour_names == ["view"]
    assert events.locate(len(rows) - 1) == (
        (f"file-{cut}", 4 + len(rows) - cut) if cut < len(rows) else ("file-0", 4 + cut)
    )


def test_columns_that_are_not_mapped_are_none():
    plain = EventColumns(user="u", item="i", order="o")
    events = collect_events(chunks([("a", 1)], [1]), plain)
    assert (events.ratings, events.times, events.behaviours) == (None, None, None)
    assert events.users.dtype == events.items.dtype == np.int32


def test_dictionaries_with_missing_empty_or_unused_values():
    def collect(indices, values):
        users = pa.DictionaryArray.from_arrays(pa.array(indices, pa.int8()), pa.array(values))
        count = len(indices)
        table = pa.table({"u": users, "i": ["x"] * count, "o": list(range(count))})
        return collect_events([Chunk(table, "f", 1, 0)], EventColumns(user="u", item="i", order="o"))

    events = collect([2, 0], ["a", "never", "c"])
    assert [events.user_ids.to_pylist()[code] for code in events.users] == ["c", "a"]
    assert sorted(events.user_ids.to_pylist()) == ["a", "c"]
    for indices, values in (([0, None], ["a"]), ([0, 1], ["a", None]), ([0, 1], ["a", ""])):
        with pytest.raises(DataError, match=r"row 2, field 'u': the id is missing"):
            collect(indices, values)


def test_a_sequence_needs_a_timestamp_or_an_order():
    with pytest.raises(ValidationError, match=r"map a timestamp or an order column"):
        EventColumns(user="u", item="i")


def test_too_many_behaviours_are_refused():
    table = pa.table({"u": ["a"] * 200, "i": ["x"] * 200, "o": list(range(200)), "b": list(range(200))})
    mapped = EventColumns(user="u", item="i", order="o", behaviour="b")
    with pytest.raises(DataError, match=r"200 different behaviours"):
        collect_events([Chunk(table, "f", 1, 0)], mapped)


def test_days_and_patterns_are_checked_with_the_config():
    for days in (["1970-01-01", "1985-12-31"], [dt.date(1970, 1, 1), dt.date(1985, 12, 31)]):
        columns = EventColumns.model_validate(
            {"user": "u", "item": "i", "timestamp": "t", "timestamp_range": days}
        )
        assert EventColumns.model_validate(tomllib.loads(dump_toml(columns))) == columns
    table = pa.table({"u": ["a"], "i": ["x"], "t": [10**8]})
    events = collect_events([Chunk(table, "f", 1, 0)], columns)
    assert events.times.values.tolist() == [10**8]
    with pytest.raises(ValidationError, match="the first day is after the last"):
        EventColumns(
            user="u", item="i", timestamp="t", timestamp_range=(dt.date(2000, 1, 1), dt.date(1999, 1, 1))
        )
    with pytest.raises(
        ValidationError, match=r"'%\.' in '%Y%\.f' is not part of a pattern of Python's strptime"
    ):
        EventColumns(user="u", item="i", timestamp="t", timestamp_format="%Y%.f")
