import numpy as np
import pyarrow as pa
import pytest

from trec_semid.core.errors import DataError
from trec_semid.data.encoders.chunks import Items, spread


def test_spans_cover_every_item_once():
    items = Items(pa.table({"a": [0] * 7}), np.arange(7))
    assert list(items.spans(3)) == [(0, 3), (3, 6), (6, 7)]
    assert list(items.spans(7)) == [(0, 7)]


def test_a_column_part_is_one_array_even_of_a_table_in_pieces():
    table = pa.concat_tables([pa.table({"a": [1, 2]}), pa.table({"a": [3, 4, 5]})])
    items = Items(table, np.arange(5))
    assert items.column("a", 1, 4).to_pylist() == [2, 3, 4]
    assert items.column("a").to_pylist() == [1, 2, 3, 4, 5]
    assert isinstance(items.column("a", 0, 0), pa.Array)


def test_dictionary_columns_are_decoded():
    table = pa.table({"a": pa.array(["x", "y", "x"]).dictionary_encode()})
    assert Items(table, np.arange(3)).column("a").type == pa.string()


def test_a_missing_column_is_told_with_those_alike():
    items = Items(pa.table({"title": ["a"], "genres": ["b"]}), np.arange(1), None, "items.csv")
    with pytest.raises(DataError, match=r"items\.csv, field 'titel': missing column\. The items have: title"):
        items.column("titel")


def test_vectors_are_spread_to_the_items_that_have_them():
    (chunk,) = spread(np.array([[1.0], [2.0]], np.float32), np.array([False, True, True]))
    assert chunk.vectors.tolist() == [[0.0], [1.0], [2.0]]
    (chunk,) = spread(None, np.array([False, False]))
    assert chunk.vectors.shape == (2, 0)
