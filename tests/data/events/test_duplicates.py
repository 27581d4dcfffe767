import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.core.errors import DataError
from trec_semid.data.events import duplicates
from trec_semid.data.events.duplicates import check_duplicates, find_duplicates
from trec_semid.data.raw.events import EventColumns, collect_events
from trec_semid.data.raw.formats.chunks import Chunk

SMALL = st.integers(0, 2)
ROWS = st.lists(
    st.tuples(SMALL, SMALL, SMALL, SMALL, st.sampled_from([None, 1.0, 2.5])), min_size=1, max_size=25
)
T0 = 10**9


def raw(rows, *, with_time=True, chunk=7):
    users, items, times, kinds, ratings = zip(*rows, strict=True)
    table = pa.table(
        {
            "u": list(map(str, users)),
            "i": list(map(str, items)),
            "t": [T0 + time for time in times],
            "b": list(map(str, kinds)),
            "r": pa.array(ratings, pa.float64()),
            "o": list(range(len(rows))),
        }
    )
    columns = EventColumns(user="u", item="i", behaviour="b", rating="r", order="o" if with_time else "t")
    if with_time:
        columns = columns.model_copy(update={"timestamp": "t"})
    cuts = range(0, len(rows), chunk)
    return collect_events([Chunk(table.slice(at, chunk), "log.csv", at + 1, 0) for at in cuts], columns)


@given(ROWS, st.booleans(), st.booleans())
def test_duplicates_are_rows_that_stood_there_before(rows, with_time, collide):
    expected = [row in rows[:index] for index, row in enumerate(rows)]
    with pytest.MonkeyPatch.context() as patch:
        if collide:  # whatever the hashes are worth, rows are compared
            patch.setattr(duplicates, "hash_columns", lambda columns: np.zeros(len(columns[0]), np.uint64))
        assert find_duplicates(raw(rows, with_time=with_time)).tolist() == expected


def test_a_refused_duplicate_names_both_rows():
    events = raw([(0, 0, 0, 0, 1.0), (1, 0, 0, 0, 1.0), (1, 1, 0, 0, None), (1, 0, 0, 0, 1.0)])
    repeats = find_duplicates(events)
    assert repeats.tolist() == [False, False, False, True]
    with pytest.raises(
        DataError, match=r"log.csv, row 4.*the event of log.csv, row 2 again; 1 events repeat"
    ):
        check_duplicates("refuse", repeats, events)
    check_duplicates("keep", repeats, events)
    check_duplicates("refuse", np.zeros(4, bool), events)
