import numpy as np
import pyarrow as pa
import pytest

from trec_semid.core.errors import DataError
from trec_semid.data.encoders import arrays
from trec_semid.data.encoders.arrays import ColumnConfig, NpyConfig, column_chunks, npy_chunks
from trec_semid.data.encoders.chunks import Items


def items(num_items, columns=None, *, source_rows=None, num_source_rows=None):
    rows = np.arange(num_items) if source_rows is None else np.asarray(source_rows)
    names = {"item_id": [f"i{row}" for row in rows]} | (columns or {})
    return Items(pa.table(names), rows, num_source_rows, "items.csv")


def save(tmp_path, array):
    path = tmp_path / "vectors.npy"
    np.save(path, array)
    return str(path)


def read_npy(given, **config):
    chunks = list(npy_chunks(NpyConfig(**config), given))
    return np.concatenate([c.vectors for c in chunks]), np.concatenate([c.present for c in chunks])


def read_column(given, **config):
    chunks = list(column_chunks(ColumnConfig(column="vector", **config), given))
    return np.concatenate([c.vectors for c in chunks]), np.concatenate([c.present for c in chunks])


def vectors_column(values, kind):
    return {"vector": pa.array(values, kind)}


def test_rows_follow_the_items_through_filtering_and_reordering(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_CHUNK", 3)
    array = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    kept = [17, 3, 4, 0, 19, 8, 9, 2]
    vectors, present = read_npy(items(8, source_rows=kept, num_source_rows=20), file=save(tmp_path, array))
    np.testing.assert_array_equal(vectors, array[kept])
    assert present.all()


@pytest.mark.parametrize(
    "flags",
    [[True, False, None, True], [1, 0, None, 1], [1.0, 0.0, None, 1.0], ["True", "0", "", "yes"]],
)
def test_a_mask_column_says_who_has_the_content(tmp_path, flags):
    array = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.float16)
    given = items(4, {"has": flags})
    _, present = read_npy(given, file=save(tmp_path, array), mask_column="has")
    assert present.tolist() == [True, False, False, True]


def test_a_row_of_zeros_is_refused_until_something_marks_it(tmp_path):
    file = save(tmp_path, np.array([[1, 2], [0, 0], [3, 4]], np.float32))
    given = items(3, {"has": [True, False, True], "wrong": [True, True, True]}, source_rows=[2, 1, 0])
    with pytest.raises(DataError, match=r"vectors\.npy, row 2: .*mask_column = .*zero_is_missing = true"):
        read_npy(given, file=file)
    with pytest.raises(DataError, match=r"row 2, field 'wrong': .*Column 'wrong' says it is there"):
        read_npy(given, file=file, mask_column="wrong")
    assert read_npy(given, file=file, mask_column="has")[1].tolist() == [True, False, True]
    assert read_npy(given, file=file, zero_is_missing=True)[1].tolist() == [True, False, True]


def test_row_counts_that_disagree_are_refused(tmp_path):
    file = save(tmp_path, np.ones((5, 2), np.float32))
    with pytest.raises(DataError, match=r"row counts disagree \(got 5\)\. items\.csv has 6 rows"):
        read_npy(items(3, num_source_rows=6), file=file)
    with pytest.raises(DataError, match=r"row counts disagree \(got 5\)\. items\.csv has at least 8 rows"):
        read_npy(items(2, source_rows=[0, 7]), file=file)


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.ones(4, np.float32), r"wrong shape \(got \(4,\)\)"),
        (np.ones((4, 2, 2), np.float32), "wrong shape"),
        (np.ones((4, 0), np.float32), "wrong shape"),
        (np.ones((4, 2), np.int64), r"wrong type of numbers \(got 'int64'\)"),
        (np.ones((4, 2), np.complex64), "wrong type of numbers"),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path, array, problem):
    with pytest.raises(DataError, match=problem):
        read_npy(items(4), file=save(tmp_path, array))


def test_files_that_hold_no_array_are_refused(tmp_path):
    whole = (tmp_path / "vectors.npy", np.ones((100, 8), np.float32))
    np.save(*whole)
    content = whole[0].read_bytes()
    for name, cut in (("short.npy", content[:500]), ("empty.npy", b""), ("text.npy", b"1,2,3\n")):
        (tmp_path / name).write_bytes(cut)
        with pytest.raises(DataError, match=rf"{name}: not a readable \.npy array"):
            read_npy(items(100), file=str(tmp_path / name))
    np.save(tmp_path / "objects.npy", np.array([["a"], [1]], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"objects\.npy: not a readable"):
        read_npy(items(2), file=str(tmp_path / "objects.npy"))
    np.savez(tmp_path / "many.npz", a=np.ones(3))
    with pytest.raises(DataError, match="several arrays"):
        read_npy(items(2), file=str(tmp_path / "many.npz"))
    for absent in (str(tmp_path / "absent.npy"), "memory://nowhere/absent.npy"):
        with pytest.raises(DataError, match=r"absent\.npy: no such file"):
            read_npy(items(2), file=absent)


@pytest.mark.parametrize("flags", [["yes", "perhaps"], [1, 2], [0.0, 0.5], [["true"], ["true", "true"]]])
def test_a_mask_value_that_is_neither_true_nor_false_is_named_with_its_row(tmp_path, flags):
    file = save(tmp_path, np.ones((2, 2), np.float32))
    with pytest.raises(
        DataError, match=r"items\.csv, row 2, field 'has': neither true nor false.*Write true"
    ):
        read_npy(items(2, {"has": flags}), file=file, mask_column="has")


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 2), pa.list_(pa.float16())],
)
def test_list_columns_of_every_kind_become_rows_and_null_is_missing(kind, monkeypatch):
    monkeypatch.setattr(arrays, "_CHUNK", 2)
    values = [None, None, [1.0, 2.0], None, [3.0, 4.0]]
    vectors, present = read_column(items(5, vectors_column(values, kind)))
    assert present.tolist() == [False, False, True, False, True]
    assert vectors[present].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_vectors_of_unequal_length_are_refused():
    given = items(3, vectors_column([[1.0, 2.0], None, [3.0]], pa.list_(pa.float32())), source_rows=[5, 6, 9])
    with pytest.raises(
        DataError, match=r"items\.csv, row 10, field 'vector': .*another length for item 'i9' \(got 1\)"
    ):
        read_column(given)


def test_an_empty_vector_or_a_vector_of_zeros_is_refused():
    kind = pa.list_(pa.float32())
    with pytest.raises(DataError, match=r"row 2, .*another length"):
        read_column(items(2, vectors_column([[1.0], []], kind)))
    given = items(2, vectors_column([[1.0], [0.0]], kind))
    with pytest.raises(DataError, match=r"row 2, .*zeros, which has no direction.*Write null"):
        read_column(given)
    assert read_column(given, zero_is_missing=True)[1].tolist() == [True, False]


@pytest.mark.parametrize("kind", [pa.float32(), pa.list_(pa.int64()), pa.string()])
def test_a_column_of_no_vectors_is_refused(kind):
    given = items(1, {"vector": pa.array([None], kind)})
    with pytest.raises(DataError, match=r"not a column of vectors.*list<float>"):
        read_column(given)
