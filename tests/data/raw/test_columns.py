import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.errors import DataError
from trec_semid.data.raw.columns import Where, as_flags, as_ids, as_integers, as_numbers

WHERE = Where([(0, "a.csv", 1, None), (2, "b.csv", 11, None)], "x")


def column(values, kind=None):
    return pa.chunked_array([pa.array(values, kind)])


def test_ids_are_text_whatever_integers_or_dictionaries_hold_them():
    assert as_ids(column(["a", "b"]), WHERE).to_pylist() == ["a", "b"]
    assert as_ids(column([1, 20]), WHERE).to_pylist() == ["1", "20"]
    assert as_ids(column(["a", "b"]).dictionary_encode(), WHERE).to_pylist() == ["a", "b"]
    assert as_ids(column(["a"], pa.large_string()), WHERE).type == pa.string()


@pytest.mark.parametrize("missing", [None, ""])
def test_missing_id_names_file_and_row(missing):
    with pytest.raises(DataError, match=r"b.csv, row 12, field 'x': the id is missing"):
        as_ids(column(["a", "b", "c", missing]), WHERE)


@pytest.mark.parametrize("values", [[1.5], [True], [["a"]], [b"a"]])
def test_ids_of_another_type_are_refused(values):
    with pytest.raises(DataError, match=r"a.csv, field 'x': wrong type.*text or integers"):
        as_ids(column(values), WHERE)


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=2)
)
def test_numbers_read_the_same_from_text_and_from_floats(values):
    expected = np.array([np.nan if value is None else value for value in values])
    texts = ["" if value is None else repr(value) for value in values]
    np.testing.assert_array_equal(as_numbers(column(values, pa.float64()), WHERE), expected)
    np.testing.assert_array_equal(as_numbers(column(texts), WHERE), expected)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (["1", "abc"], r"row 2.*not a number \(got 'abc'\)"),
        (["1", "1,5"], r"row 2.*not a number \(got '1,5'\)"),
        (["1", "nan"], r"row 2.*not a finite number \(got 'nan'\)"),
        ([1.0, float("nan")], r"row 2.*not a finite number \(got nan\)"),
        ([1.0, float("-inf")], r"row 2.*not a finite number \(got -inf\)"),
        ([[1.0]], "wrong type"),
    ],
)
def test_bad_numbers_are_refused_by_row_and_value(values, problem):
    with pytest.raises(DataError, match=problem):
        as_numbers(column(values), WHERE)


def test_nan_can_mean_missing_and_infinity_never_does():
    np.testing.assert_array_equal(
        as_numbers(column([1.0, float("nan")]), WHERE, nan_is_missing=True), [1.0, np.nan]
    )
    with pytest.raises(DataError, match=r"not a finite number"):
        as_numbers(column([float("inf")]), WHERE, nan_is_missing=True)


def test_integers_come_from_integers_text_and_whole_floats():
    for values in ([3, -4], ["3", " -4"], ["3.0", "-4"], [3.0, -4.0]):
        assert as_integers(column(values), WHERE).tolist() == [3, -4]


@pytest.mark.parametrize("values", [[1.5], ["1.5"], [None], [""], ["x"], [2**64 - 1], ["1e300"]])
def test_other_integers_are_refused(values):
    kind = pa.uint64() if values == [2**64 - 1] else pa.int64() if values == [None] else None
    with pytest.raises(DataError, match=r"a.csv, row 1, field 'x'"):
        as_integers(column(values, kind), WHERE)


def test_flags_come_from_booleans_numbers_and_text():
    assert as_flags(column([True, None, False]), WHERE).tolist() == [True, False, False]
    assert as_flags(column([1, 0, None]), WHERE).tolist() == [True, False, False]
    assert as_flags(column(["Yes", "false", ""]), WHERE).tolist() == [True, False, False]
    with pytest.raises(DataError, match=r"b.csv, row 11.*neither true nor false \(got 'maybe'\)"):
        as_flags(column(["1", "0", "maybe"]), WHERE)


def test_types_that_are_no_columns_of_values_are_refused():
    for values in (pa.array([{"a": 1}]), pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))):
        for read in (as_ids, as_numbers, as_integers, as_flags):
            with pytest.raises(DataError, match=r"wrong type"):
                read(pa.chunked_array([values]), WHERE)
