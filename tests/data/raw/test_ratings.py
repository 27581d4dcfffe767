from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.core.errors import DataError
from trec_semid.data.raw.columns import Where
from trec_semid.data.raw.ratings import as_ratings, join_ratings

WHERE = Where([(0, "a.csv", 1, None)], "stars")
LARGE = st.integers(-(2**63), 2**63 - 1)
DECIMALS = st.decimals(-(10**6), 10**6, places=4)
FLOATS = st.floats(-1e30, 1e30)
WRITTEN = {
    "int64": (LARGE, lambda values: pa.array(values, pa.int64()), Decimal),
    "uint64": (st.integers(0, 2**64 - 1), lambda values: pa.array(values, pa.uint64()), Decimal),
    "int8": (st.integers(-128, 127), lambda values: pa.array(values, pa.int8()), Decimal),
    "decimal": (DECIMALS, lambda values: pa.array(values, pa.decimal128(30, 4)), Decimal),
    "float64": (
        FLOATS,
        lambda values: pa.array(values, pa.float64()),
        lambda value: Decimal(value) if value.is_integer() else Decimal(repr(value)),
    ),
    "float32": (
        st.floats(-(2.0**99), 2.0**99, width=32),
        lambda values: pa.array(values, pa.float32()),
        lambda value: Decimal(value) if value.is_integer() else Decimal(str(np.float32(value))),
    ),
    "float16": (
        st.floats(-1000, 1000, width=16),
        lambda values: pa.array(
            [None if each is None else np.float16(each) for each in values], pa.float16()
        ),
        lambda value: Decimal(value) if value.is_integer() else Decimal(str(np.float16(value))),
    ),
    "text": (
        st.one_of(
            LARGE.map(str), DECIMALS.map(str), FLOATS.map(repr), DECIMALS.map(lambda value: f" {value}0 ")
        ),
        lambda values: pa.array(values, pa.string()),
        lambda value: Decimal(value.strip()),
    ),
}


@given(st.sampled_from(sorted(WRITTEN)), st.data())
def test_ratings_are_what_the_source_says_in_its_own_type(kind, data):
    drawn, column, exact = WRITTEN[kind]
    values = data.draw(st.lists(st.one_of(st.none(), drawn), min_size=1, max_size=8))
    ratings = as_ratings(pa.chunked_array([column(values)]), WHERE)
    decimals = [*ratings.decimals(), None]
    expected = [None if value is None else exact(value) for value in values]
    assert [decimals[code] for code in ratings.codes] == expected
    assert len(set(ratings.decimals())) == len(ratings.values)
    numbers = [np.nan if value is None else float(value) for value in expected]
    np.testing.assert_array_equal(ratings.numbers(), numbers)


@given(st.lists(st.sampled_from(["int64", "float64", "text"]), min_size=1, max_size=4), st.data())
def test_pieces_of_any_types_number_equal_values_alike(kinds, data):
    pieces, expected = [], []
    for kind in kinds:
        small = data.draw(st.lists(st.integers(-3, 3), min_size=1, max_size=4))
        values = {
            "int64": small,
            "float64": [float(each) for each in small],
            "text": [f"{each}.0" for each in small],
        }
        array = pa.array(values[kind], getattr(pa, {"text": "string"}.get(kind, kind))())
        pieces.append(as_ratings(pa.chunked_array([array]), WHERE))
        expected += small
    ratings = join_ratings(pieces)
    assert [int(ratings.decimals()[code]) for code in ratings.codes] == expected
    assert len(ratings.values) >= len(set(ratings.codes.tolist())) == len(set(expected))


def test_missing_ratings_have_no_code():
    for values in (pa.array([None, 3.5]), pa.array([" ", "3.5"]), pa.array(["", "3.5"]).dictionary_encode()):
        ratings = as_ratings(pa.chunked_array([values]), WHERE)
        assert ratings.codes[0] == -1
        np.testing.assert_array_equal(ratings.numbers(), [np.nan, 3.5])
    assert as_ratings(pa.chunked_array([pa.nulls(2)]), WHERE).codes.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (["1", "x"], r"row 2, field 'stars': not a number \(got 'x'\)"),
        ([1.0, float("inf")], "not a finite number"),
        (["1", "1e39"], "row 2.*too large for a rating"),
        ([True, False], "wrong type"),
    ],
)
def test_what_is_no_rating_is_refused(values, problem):
    with pytest.raises(DataError, match=problem):
        as_ratings(pa.chunked_array([pa.array(values)]), WHERE)
