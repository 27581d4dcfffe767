import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.data.ragged import Ragged, positions, ragged_from_arrow

LISTS = st.lists(st.one_of(st.none(), st.lists(st.integers(0, 9), max_size=4)), min_size=1, max_size=12)


@given(LISTS, st.data())
def test_taking_rows_equals_a_python_loop_also_for_nulls_and_slices(lists, data):
    array = pa.array(lists, pa.list_(pa.int32()))
    first = data.draw(st.integers(0, len(lists) - 1))
    column = pa.chunked_array([array.slice(first)])
    rows = data.draw(st.lists(st.integers(0, len(lists) - first - 1), max_size=8))
    ids, lengths = ragged_from_arrow(column).take(np.asarray(rows, np.int64))
    expected = [lists[first + row] or [] for row in rows]
    assert lengths.tolist() == [len(ids) for ids in expected]
    assert ids.tolist() == [value for ids in expected for value in ids]


def test_a_plain_column_has_one_value_a_row_and_null_is_the_unknown_id():
    ragged = ragged_from_arrow(pa.chunked_array([pa.array([3, None], pa.int32()), pa.array([5], pa.int32())]))
    ids, lengths = ragged.take(np.array([2, 1, 0]))
    assert ids.tolist() == [5, 0, 3]
    assert lengths.tolist() == [1, 1, 1]


def test_positions_of_nothing_are_empty():
    assert positions(np.empty(0, np.int64), np.empty(0, np.int64)).tolist() == []


def test_ranges_may_overlap():
    ragged = Ragged(np.array([0, 1]), np.array([3, 2]), np.array([7, 8, 9]))
    assert ragged.take(np.array([0, 1]))[0].tolist() == [7, 8, 9, 8, 9]
