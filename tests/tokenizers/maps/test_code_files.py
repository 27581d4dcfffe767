"""Codes from elsewhere: what is read as it is, and what is refused by row, value and remedy."""

import contextlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.core.errors import DataError
from trec_semid.core.paths import write_bytes
from trec_semid.tokenizers.maps.code_files import read_codes


def write(folder, codes, *, sizes=None, kind=None, items=None):
    """Write a map of as many items as there are codes, and return its place."""
    place = f"{folder}/codes.parquet"
    names = pa.array([f"i{row}" for row in range(len(codes))], pa.string()) if items is None else items
    column = codes if isinstance(codes, pa.Array) else pa.array(codes, kind)
    table = pa.table({"item_id": names, "codes": column})
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"codebook_sizes": sizes} if sizes else None), sink)
    write_bytes(place, sink.getvalue().to_pybytes())
    return place


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.int8()), pa.list_(pa.uint64()), pa.large_list(pa.int64()), pa.list_(pa.int16(), 2)],
    ids=str,
)
def test_any_list_of_whole_numbers_is_read(tmp_path, kind):
    ids, codes, sizes, *_ = read_codes(write(tmp_path, [[0, 7], [3, 1]], kind=kind))
    assert ids.to_pylist() == ["i0", "i1"]
    assert (codes.tolist(), codes.dtype, sizes) == ([[0, 7], [3, 1]], np.int32, (4, 8))
    assert read_codes(write(tmp_path, [[0, 7], [3, 1]], kind=kind, sizes="4, 9")).sizes == (4, 9)


@pytest.mark.parametrize(
    ("codes", "kind", "words"),
    [
        ([[1.5, 2.0]], pa.list_(pa.float64()), r"wrong type \(got 'list<.*double>'\)\. Write .* list<int32>"),
        ([[1.0, 2.0]], pa.list_(pa.float32()), r"wrong type \(got 'list<.*float>'\)"),
        ([["1", "2"]], pa.list_(pa.string()), r"wrong type \(got 'list<.*string>'\)"),
        ([[True, False]], pa.list_(pa.bool_()), r"wrong type \(got 'list<.*bool>'\)"),
        (["1 2"], pa.string(), r"wrong type \(got 'string'\)"),
        ([3], pa.int32(), r"wrong type \(got 'int32'\)"),
        ([[None, None]], None, r"wrong type \(got 'list<.*null>'\)"),
        ([[], []], pa.list_(pa.int32()), "row 1, field 'codes': a semantic ID without codes"),
        ([[], []], None, "row 1, field 'codes': a semantic ID without codes"),
        ([[1], []], pa.list_(pa.int32()), "row 2, field 'codes': .*same length: 1 codes in row 1, 0 here"),
        ([[1], None], pa.list_(pa.int32()), "row 2, field 'codes': missing value"),
        ([[1, 2], [3, None]], pa.list_(pa.int32()), r"row 2, field 'codes': missing value.*every position"),
        ([[1], [-2]], pa.list_(pa.int64()), r"row 2, .*outside its codebook \(got -2\)\. .* from 0"),
        ([], pa.list_(pa.int32()), "no items"),
    ],
)
def test_codes_that_are_no_tuples_of_whole_numbers_are_refused(tmp_path, codes, kind, words):
    with pytest.raises(DataError, match=words) as caught:
        read_codes(write(tmp_path, codes, kind=kind))
    assert caught.value.file == str(tmp_path / "codes.parquet")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ("9", r"codebook sizes of 1 for 2 positions \(got '9'\)\. State .* codebook_sizes = '256,256'"),
        ("9,9,9", "codebook sizes of 3 for 2 positions"),
        ("9,x", r"not codebook sizes \(got '9,x'\)"),
        ("9,", "not codebook sizes"),
        ("9,0", "not codebook sizes"),
        ("9,-9", "not codebook sizes"),
        ("9,9.0", "not codebook sizes"),
        ("9,4294967296", "not codebook sizes"),
        ("9," + "9" * 5000, "not codebook sizes"),
        (b"9,\xff", "not codebook sizes"),
        ("9,3", r"row 1, field 'codes': code outside its codebook \(got 7\)"),
    ],
)
def test_stated_sizes_that_do_not_fit_are_refused(tmp_path, sizes, words):
    with pytest.raises(DataError, match=words):
        read_codes(write(tmp_path, [[0, 7], [3, 1]], sizes=sizes))


@pytest.mark.parametrize("largest", [1_950_000_000, 2**31 - 1, 2**40, 2**63 - 1])
def test_hashes_are_refused_before_they_become_tables(tmp_path, largest):
    words = rf"row 2, .*far beyond the number of items \(got {largest}\)\. Position 0 .* number its codes"
    with pytest.raises(DataError, match=words):
        read_codes(write(tmp_path, [[0, 7], [largest, 1]], kind=pa.list_(pa.int64())))


def test_a_codebook_may_be_large_where_items_are_many_or_its_size_is_stated(tmp_path):
    assert read_codes(write(tmp_path, [[65_535]])).sizes == (65_536,)
    with pytest.raises(DataError, match=r"table of 65,538 rows for 1 items"):
        read_codes(write(tmp_path, [[65_536]]))
    assert read_codes(write(tmp_path, [[65_536]], sizes="70000")).sizes == (70_000,)
    many = [[row] for row in range(4999)]
    assert read_codes(write(tmp_path, [*many, [79_999]])).sizes == (80_000,)
    with pytest.raises(DataError, match=r"row 5000, .*\(got 80000\).*for 5,000 items"):
        read_codes(write(tmp_path, [*many, [80_000]]))


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (pa.array([1, 2]), r"field 'item_id': wrong type \(got 'int64'\)\. Write ids as text"),
        (pa.array(["a", None]), "row 2, field 'item_id': missing value"),
        (pa.array(["a", "a"]), r"row 2, field 'item_id': duplicate item \(got 'a'\)"),
    ],
)
def test_ids_that_tell_no_items_are_refused(tmp_path, items, words):
    with pytest.raises(DataError, match=words):
        read_codes(write(tmp_path, [[0], [1]], items=items))


KINDS = [pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.float64(), pa.string()]
VALUES = [
    st.integers(0, 5),
    st.integers(-1, 5) | st.integers(0, 2**63) | st.none(),
    st.floats(allow_nan=True) | st.none(),
    st.text(max_size=2),
]


@given(
    st.tuples(st.sampled_from(VALUES), st.integers(0, 3)).flatmap(
        lambda drawn: (
            st.lists(st.lists(drawn[0], min_size=drawn[1], max_size=drawn[1]), max_size=4)
            | st.lists(st.lists(drawn[0], max_size=3) | st.none(), max_size=4)
        )
    ),
    st.sampled_from(KINDS),
    st.sampled_from([None, "9", "9,9", "9,9,9"]) | st.text(alphabet="0123456789,x- ", max_size=6),
)
def test_whatever_a_file_holds_is_a_map_or_is_refused(codes, kind, sizes):
    try:
        column = pa.array(codes, pa.list_(kind))
    except (pa.ArrowException, TypeError, OverflowError):
        return
    place = write("memory://fuzz", column, sizes=sizes)
    found = None
    with contextlib.suppress(DataError):
        found = read_codes(place)
    if found:
        assert found.codes.tolist() == column.to_pylist()
        assert (found.codes >= 0).all()
        assert (found.codes <= found.sizes).all()
        assert max(found.sizes) <= 65_536 or sizes
