import datetime

import numpy as np
import pyarrow as pa
import pytest

from trec_semid.core.errors import DataError
from trec_semid.data.encoders.chunks import Items
from trec_semid.data.encoders.columns import read_numbers, read_texts, read_values, read_years


def items(values, kind=None):
    rows = np.arange(len(values)) + 9  # which messages count from 1
    table = pa.table({"item_id": rows.astype(str), "x": pa.array(values, kind)})
    return Items(table, rows, None, "items.csv")


def values_of(given, separator=None, start=0, stop=None):
    parents, values = read_values(given, "x", start, stop or len(given.source_rows), separator)
    return list(zip(parents.tolist(), values.to_pylist(), strict=True))


def test_lists_strings_and_split_strings_give_the_same_values():
    wanted = [(0, "Drama"), (0, "War"), (2, "War")]
    assert values_of(items([["Drama", " War", None, ""], [], ["War"], None])) == wanted
    assert values_of(items(["Drama|War ", "", "|War|", None]), separator="|") == wanted
    assert values_of(items(["Drama", None, " "])) == [(0, "Drama")]
    assert values_of(items([["a|b"], ["c"]]), separator="|") == [(0, "a"), (0, "b"), (1, "c")]


def test_a_part_of_the_items_counts_from_its_own_start():
    given = items([["a"], None, ["b", "c"], ["d"]])
    assert values_of(given, start=1, stop=3) == [(1, "b"), (1, "c")]
    assert read_texts(given, "x", 1, 4, joined_by="+").to_pylist() == [None, "b+c", "d"]


@pytest.mark.parametrize(
    ("values", "kind", "texts"),
    [
        ([1995.0, 1.5, None, np.nan, np.inf], pa.float32(), ["1995", "1.5", None, None, None]),
        ([7, None], pa.int16(), ["7", None]),
        ([True, False], None, ["true", "false"]),
        (["a", "b", "a"], pa.dictionary(pa.int8(), pa.string()), ["a", "b", "a"]),
        ([[1.0, 2.5], []], pa.list_(pa.float64()), ["1, 2.5", None]),
        ([["a", "b"], None], pa.list_(pa.string(), 2), ["a, b", None]),
        ([None, None], pa.null(), [None, None]),
    ],
)
def test_other_types_are_written_as_a_person_would(values, kind, texts):
    given = items(values, kind)
    assert read_texts(given, "x", 0, len(values), joined_by=", ").to_pylist() == texts


def test_a_type_that_is_no_text_is_refused():
    with pytest.raises(DataError, match=r"items\.csv, field 'x': cannot be written as text"):
        read_values(items([{"a": 1}]), "x", 0, 1)


def test_numbers_come_from_numbers_and_from_text():
    expected = [1.5, np.nan, -2.0, np.nan]
    np.testing.assert_array_equal(read_numbers(items([1.5, None, -2, np.nan]), "x"), expected)
    np.testing.assert_array_equal(read_numbers(items(["1.5", None, " -2 ", ""]), "x"), expected)
    np.testing.assert_array_equal(read_numbers(items([2**40, None]), "x"), [2.0**40, np.nan])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (["1", "cheap"], r"items\.csv, row 11, field 'x': not a number for item '10' \(got 'cheap'\)"),
        ([1.0, 2.0, np.inf], r"row 12, field 'x': not a finite number"),
        (["1", "-inf"], r"row 11, field 'x': not a finite number"),
        ([["1"], ["2", "3"]], r"row 11, field 'x': several values"),
    ],
)
def test_what_is_no_number_is_named_with_its_row(values, problem):
    with pytest.raises(DataError, match=problem):
        read_numbers(items(values), "x")


def test_years_come_from_numbers_text_and_dates():
    dates = [datetime.date(1995, 5, 1), None]
    for given in (items(dates), items([1995, None]), items(["1995", ""]), items([1995.0, np.nan])):
        np.testing.assert_array_equal(read_years(given, "x"), [1995, np.nan])
    stamps = items([datetime.datetime(2001, 2, 3, 4, 5), None])
    np.testing.assert_array_equal(read_years(stamps, "x"), [2001, np.nan])


@pytest.mark.parametrize("year", [0, 99999, -1])
def test_a_number_that_is_no_year_is_refused(year):
    with pytest.raises(
        DataError, match=rf"row 11, field 'x': not a year for item '10' \(got {year}.0\).*null"
    ):
        read_years(items([1990, year]), "x")
