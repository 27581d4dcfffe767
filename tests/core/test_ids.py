import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core import ids as ids_module
from trec_semid.core.ids import id_array, ids_as_json, in_id_order, is_repeated, rows_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
NAMES = st.lists(TEXT, max_size=30)


@given(
    ids=st.lists(st.none() | TEXT, max_size=30), among=st.lists(st.none() | TEXT, unique=True, max_size=30)
)
def test_rows_are_those_of_a_dict_from_value_to_row(ids: list[str | None], among: list[str | None]):
    rows = {value: row for row, value in enumerate(among)}
    found = rows_of(id_array(ids), id_array(among))
    assert found.dtype == np.int64
    assert found.tolist() == [rows.get(value, -1) for value in ids]


@given(ids=NAMES)
def test_repeated_are_those_that_a_set_has_seen(ids: list[str]):
    assert is_repeated(id_array(ids)).tolist() == [item in ids[:row] for row, item in enumerate(ids)]


@given(ids=st.lists(TEXT, unique=True, max_size=30))
def test_order_is_that_of_python_text(ids: list[str]):
    order = in_id_order(id_array(ids))
    assert [ids[row] for row in order] == sorted(ids)


@settings(max_examples=50)
@given(ids=NAMES, size=st.integers(1, 5))
def test_pieces_of_json_are_those_of_the_whole_list(ids: list[str], size: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids_module, "_CHUNK_IDS", size)
        assert b"".join(ids_as_json(id_array(ids))) == json.dumps(ids).encode()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_columns_of_any_text_become_equal_arrays(kind: pa.DataType):
    column = pa.chunked_array([pa.array(["a", "b"]).cast(kind), pa.array(["c"]).cast(kind)])
    assert id_array(column).equals(id_array(["a", "b", "c"]))
    assert id_array(column.chunk(0)).equals(id_array(["a", "b"]))
    assert id_array(pa.chunked_array([], kind)).equals(id_array([]))


def test_bytes_that_are_no_text_are_refused():
    text = pa.array(["a", "b"])
    buffers = [text.buffers()[0], text.buffers()[1], pa.py_buffer(b"a\xff")]
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        id_array(pa.Array.from_buffers(pa.string(), 2, buffers))
