import numpy as np
import pyarrow as pa
import pytest

from trec_semid.core.errors import DataError
from trec_semid.data.events.filters import FilterConfig
from trec_semid.data.events.linking import link
from trec_semid.data.raw.entities import collect_entities
from trec_semid.data.raw.events import EventColumns, collect_events
from trec_semid.data.raw.formats.chunks import Chunk
from trec_semid.data.schema import RowCounts
from trec_semid.data.sources.source import Source

LOG = [("u1", "b"), ("u2", "x"), ("u1", "a"), ("u3", "b")]


def source(items=("a", "b", "c"), users=None, log=LOG):
    table = pa.table({"u": [u for u, _ in log], "i": [i for _, i in log], "o": list(range(len(log)))})
    events = collect_events([Chunk(table, "log.csv", 1, 0)], EventColumns(user="u", item="i", order="o"))
    flags = {"live": [index % 2 for index in range(len(items or ()))]}
    known_items = items and collect_entities(
        [Chunk(pa.table({"id": list(items), **flags}), "items.csv", 1, 0)], "id", "item"
    )
    known_users = users and collect_entities(
        [Chunk(pa.table({"id": list(users)}), "users.csv", 1, 0)], "id", "user"
    )
    return Source(known_items, known_users, events)


def pairs(links):
    users, items = links.users.ids.to_pylist(), links.items.ids.to_pylist()
    return [(users[u], items[i]) for u, i in zip(links.events.users, links.events.items, strict=True)]


def test_unknown_items_are_refused_by_row_or_dropped_and_counted():
    with pytest.raises(
        DataError, match=r"log.csv, row 2, field 'item': the items.csv does not list.*'x'.*drop"
    ):
        link(source(), None, FilterConfig(), None)
    links = link(source(), None, FilterConfig(unknown_items="drop"), None)
    assert pairs(links) == [("u1", "b"), ("u1", "a"), ("u3", "b")]
    assert links.items.ids.to_pylist() == ["a", "b", "c"]
    assert links.users.ids.to_pylist() == ["u1", "u3"]
    assert links.read == RowCounts(events=4, items=4, users=3)
    assert links.dropped == {
        "unknown_items": RowCounts(events=1, items=1),
        "too_few_events": RowCounts(users=1),  # u2 had no other event
    }


def test_without_an_items_file_the_log_is_the_catalogue():
    links = link(source(items=None), None, FilterConfig(), None)
    assert pairs(links) == LOG
    assert links.items.ids.to_pylist() == ["b", "x", "a"]


def test_unknown_users_are_refused_dropped_or_kept():
    given = {"items": None, "users": ["u3", "u1", "idle"]}
    with pytest.raises(DataError, match=r"row 2, field 'user'.*users.csv.*unknown_users"):
        link(source(**given), None, FilterConfig(), None)
    dropped = link(source(**given), None, FilterConfig(unknown_users="drop"), None)
    assert dropped.users.ids.to_pylist() == ["u3", "u1"]
    assert dropped.dropped == {
        "unknown_users": RowCounts(events=1, users=1),
        "too_few_events": RowCounts(users=1),  # idle
    }
    kept = link(source(**given), None, FilterConfig(unknown_users="keep"), None)
    assert pairs(kept) == LOG
    assert kept.users.ids.to_pylist() == ["u3", "u1", "u2"]


def test_items_that_a_flag_leaves_out_take_their_events_along():
    links = link(source(), np.arange(4.0), FilterConfig(unknown_items="drop"), "live")
    assert links.items.ids.to_pylist() == ["b"]
    assert pairs(links) == [("u1", "b"), ("u3", "b")]
    assert links.events.labels.tolist() == [0, 3]
    assert links.items.rows.tolist() == [1]
    assert links.dropped["keep_where"] == RowCounts(events=1, items=2)
