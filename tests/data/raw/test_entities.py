import pyarrow as pa
import pytest

from trec_semid.core.errors import DataError
from trec_semid.data.raw.entities import collect_entities, with_unknown
from trec_semid.data.raw.formats.chunks import Chunk


def chunk(ids, file="items.csv", first_row=1, **more):
    return Chunk(pa.table({"id": ids, **more}), file, first_row, 0)


def test_files_join_in_order_and_every_row_is_traceable():
    items = collect_entities([chunk(["a", "b"]), chunk([1], "more.csv", x=[5])], "id", "item")
    assert items.ids.to_pylist() == ["a", "b", "1"]
    assert items.column("x")[0].to_pylist() == [None, None, 5]
    assert items.locate(2) == ("more.csv", 1)


def test_duplicate_ids_name_both_rows():
    problem = r"more.csv, row 8, field 'id': duplicate item id, first seen in items.csv, row 2 \(got 'b'\)"
    with pytest.raises(DataError, match=problem):
        collect_entities([chunk(["a", "b"]), chunk(["c", "b"], "more.csv", 7)], "id", "item")


def test_missing_id_column_and_conflicting_files_are_refused():
    with pytest.raises(DataError, match=r"field 'sku': no such column. Map one of: id"):
        collect_entities([chunk(["a"])], "sku", "item")
    with pytest.raises(DataError, match=r"items.csv: files disagree"):
        collect_entities([chunk(["a"], x=[1]), chunk(["b"], x=[[1]])], "id", "item")


def test_unknown_ids_can_be_appended_without_facts():
    users = collect_entities([chunk(["a", "b"], age=[1, 2])], "id", "user")
    more = with_unknown(users, pa.array(["z", "b", "y"]))
    assert more.ids.to_pylist() == ["a", "b", "z", "y"]
    assert more.table["age"].to_pylist() == [1, 2, None, None]
