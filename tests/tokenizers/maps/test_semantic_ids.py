import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trec_semid.core.errors import DataError
from trec_semid.core.ids import id_array
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds, holds_same_codes

IDS = SemanticIds(id_array(["a", "b", "c"]), np.array([[0, 4], [2, 5], [3, 1]], np.int32), (4, 5))


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_saved_map_reads_back_as_it_was(tmp_path, place):
    uri = str(tmp_path / "run" / "ids.parquet") if place == "folder" else "memory://maps/ids.parquet"
    IDS.save(uri)
    loaded = SemanticIds.load(uri)
    assert loaded.item_ids == IDS.item_ids
    np.testing.assert_array_equal(loaded.codes, IDS.codes)
    assert (loaded.sizes, loaded.num_positions) == ((4, 5), 2)


def test_file_has_the_columns_other_programs_read(tmp_path):
    IDS.save(str(tmp_path / "ids.parquet"))
    table = pq.read_table(tmp_path / "ids.parquet")
    assert table["item_id"].to_pylist() == ["a", "b", "c"]
    assert table["codes"].to_pylist() == [[0, 4], [2, 5], [3, 1]]
    assert table.schema.field("codes").type.value_type == pa.int32()


def test_map_is_put_into_the_order_asked_for(tmp_path):
    uri = str(tmp_path / "ids.parquet")
    IDS.save(uri)
    loaded = SemanticIds.load(uri, id_array(["c", "a"]))
    assert loaded.item_ids.to_pylist() == ["c", "a"]
    assert loaded.codes.tolist() == [[3, 1], [0, 4]]


def test_item_without_a_semantic_id_is_named(tmp_path):
    uri = str(tmp_path / "ids.parquet")
    IDS.save(uri)
    with pytest.raises(DataError, match=r"item has no semantic ID \(got 'd'\)"):
        SemanticIds.load(uri, id_array(["a", "d"]))


def test_missing_file_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(DataError, match=r"no such file.*trec-semid tokenize"):
        SemanticIds.load(str(tmp_path / "none.parquet"))


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"item_id": ["a", "a"], "codes": [[0], [1]]}, r"row 2, field 'item_id': duplicate item \(got 'a'\)"),
        ({"item_id": ["a", "b"], "codes": [[0], [-1]]}, "row 2, field 'codes': code outside"),
        ({"item_id": ["a", "b"], "codes": [[0], [1, 2]]}, "row 2, field 'codes': .*same length"),
        ({"item_id": ["a", "b"]}, "field 'codes': missing column"),
    ],
)
def test_bad_maps_are_refused(tmp_path, columns, problem):
    pq.write_table(pa.table(columns), tmp_path / "ids.parquet")
    with pytest.raises(DataError, match=problem):
        SemanticIds.load(str(tmp_path / "ids.parquet"))


def test_code_beyond_its_stated_codebook_is_refused(tmp_path):
    table = pa.table({"item_id": ["a"], "codes": [[5, 0]]})
    pq.write_table(table.replace_schema_metadata({"codebook_sizes": "4,5"}), tmp_path / "ids.parquet")
    with pytest.raises(DataError, match=r"code outside its codebook \(got 5\)\. Position 0 has 4 codes"):
        SemanticIds.load(str(tmp_path / "ids.parquet"))


def test_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "ids.parquet").write_bytes(b"codes")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        SemanticIds.load(str(tmp_path / "ids.parquet"))


def test_checksum_tells_maps_apart_by_order_size_and_code():
    same = SemanticIds(id_array(IDS.item_ids.to_pylist()), IDS.codes.astype(np.int32), (4, 5))
    others = [
        SemanticIds(id_array(["a", "c", "b"]), IDS.codes, (4, 5)),
        SemanticIds(IDS.item_ids, IDS.codes, (4, 6)),
        SemanticIds(IDS.item_ids, IDS.codes[::-1], (4, 5)),
        SemanticIds(id_array(["a", "b"]), IDS.codes[:2], (4, 5)),
    ]
    assert same.checksum() == IDS.checksum()
    assert len({IDS.checksum(), *(other.checksum() for other in others)}) == 5


def test_a_copy_is_the_same_in_another_order_but_not_with_other_codes(tmp_path):
    copy, original = str(tmp_path / "copy.parquet"), str(tmp_path / "original.parquet")
    IDS.save(copy)
    SemanticIds(id_array(["c", "a", "b", "d"]), IDS.codes[[2, 0, 1, 0]], (4, 5)).save(original)
    assert holds_same_codes(copy, original, None)
    assert holds_same_codes(copy, original, IDS.checksum())
    SemanticIds(id_array(["c", "a", "b"]), IDS.codes[[2, 1, 0]], (4, 5)).save(original)
    assert not holds_same_codes(copy, original, IDS.checksum())
    SemanticIds(id_array(["a", "b"]), IDS.codes[:2], (4, 5)).save(original)
    assert not holds_same_codes(copy, original, IDS.checksum())


def test_a_copy_that_was_tuned_counts_by_the_codes_it_began_with(tmp_path):
    copy, original = str(tmp_path / "copy.parquet"), str(tmp_path / "original.parquet")
    SemanticIds(IDS.item_ids, IDS.codes[::-1], (4, 5)).save(copy)
    IDS.save(original)
    assert holds_same_codes(copy, original, IDS.checksum())
    assert not holds_same_codes(copy, original, None)
