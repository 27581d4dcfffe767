import operator
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from trec_semid.core.errors import DataError
from trec_semid.data.events.labels import LabelConfig, check_label_columns, label_rule, make_labels
from trec_semid.data.raw.columns import Where
from trec_semid.data.raw.events import RawEvents
from trec_semid.data.raw.ratings import as_ratings


def config(**values):
    return TypeAdapter(LabelConfig).validate_python(values)


WHERE = Where([(0, "log.csv", 1, None)], "rating")


def ratings_column(values):
    if isinstance(values, pa.ChunkedArray):
        return values
    return pa.chunked_array([pa.array(values, from_pandas=True)])


def events(ratings=None, behaviours=None, names=()):
    count = len(ratings if ratings is not None else behaviours)
    ids = pa.array(["a"])
    return RawEvents(
        np.zeros(count, np.int32),
        np.zeros(count, np.int32),
        None if ratings is None else as_ratings(ratings_column(ratings), WHERE),
        None,
        None,
        None if behaviours is None else np.array(behaviours),
        ids,
        ids,
        list(names),
        [(0, "log.csv", 1, None)],
    )


@pytest.mark.parametrize(
    ("op", "expected"),
    [(">", [0, 0, 1]), (">=", [0, 1, 1]), ("<", [1, 0, 0]), ("<=", [1, 1, 0]), ("==", [0, 1, 0])],
)
def test_threshold_compares_as_written(op, expected):
    labels = make_labels(config(kind="threshold", op=op, threshold=3), events([2, 3, 4]))
    assert labels.tolist() == expected
    assert labels.dtype == np.float32


def test_missing_rating_is_refused_by_row_or_becomes_no_label():
    with pytest.raises(DataError, match=r'log.csv, row 2, field .rating.: the rating is missing.*"null"'):
        make_labels(config(kind="threshold", threshold=3), events([5, np.nan]))
    labels = make_labels(config(kind="threshold", threshold=3, missing="null"), events([5, np.nan]))
    np.testing.assert_array_equal(labels, [1, np.nan])


def test_given_labels_must_be_0_or_1():
    assert make_labels(config(kind="given"), events([0, 1])).tolist() == [0, 1]
    with pytest.raises(DataError, match=r"row 2.*neither 0 nor 1 \(got 2.0\)"):
        make_labels(config(kind="given"), events([0, 2]))


def test_behaviours_label_and_unknown_ones_are_refused():
    log = events(behaviours=[0, 1, 2, 1], names=["view", "click", "buy"])
    assert make_labels(config(kind="behaviour", positive=["click", "buy"]), log).tolist() == [0, 1, 1, 1]
    with pytest.raises(DataError, match=r"no event has this behaviour.*'like'.*view, click, buy"):
        make_labels(config(kind="behaviour", positive=["like"]), log)


def test_all_positive_and_none():
    assert make_labels(config(kind="all_positive"), events([1, 2])).tolist() == [1, 1]
    assert make_labels(config(kind="none"), events([1, 2])) is None


def test_rules_that_lack_their_column_are_refused():
    with pytest.raises(ValueError, match=r"'threshold' needs a rating"):
        check_label_columns(config(kind="threshold", threshold=3), has_rating=False, has_behaviour=True)
    with pytest.raises(ValueError, match=r"'behaviour' needs a behaviour"):
        check_label_columns(
            config(kind="behaviour", positive=["click"]), has_rating=True, has_behaviour=False
        )
    check_label_columns(config(kind="all_positive"), has_rating=False, has_behaviour=False)


def test_rules_are_said_in_words():
    assert label_rule(config(kind="threshold", threshold=3)) == "rating > 3"
    assert label_rule(config(kind="behaviour", positive=["a", "b"])) == "behaviour is a or b"


OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq}
EDGES = [2**24, 2**53, 2**62, 10**15]
NEAR = st.builds(operator.add, st.sampled_from(EDGES), st.integers(-3, 3))


@given(
    st.lists(NEAR, min_size=1),
    NEAR,
    st.sampled_from(sorted(OPERATORS)),
    st.sampled_from(["int", "text", "decimal"]),
)
def test_whole_numbers_are_compared_exactly_beyond_what_floats_hold(values, threshold, op, kind):
    kinds = {"int": pa.int64(), "text": pa.string(), "decimal": pa.decimal128(38, 0)}
    column = pa.array([str(value) for value in values] if kind == "text" else values, kinds[kind])
    labels = make_labels(
        config(kind="threshold", op=op, threshold=threshold), events(pa.chunked_array([column]))
    )
    assert labels.tolist() == [float(OPERATORS[op](value, threshold)) for value in values]


@given(
    st.lists(st.decimals(-3, 3, places=3), min_size=1),
    st.decimals(-3, 3, places=3).map(float),
    st.sampled_from(sorted(OPERATORS)),
    st.sampled_from(["float64", "float32", "text", "decimal"]),
)
def test_fractions_are_compared_as_they_are_written(values, threshold, op, kind):
    arrays = {
        "float64": pa.array([float(value) for value in values]),
        "float32": pa.array(np.array([float(value) for value in values], np.float32)),
        "text": pa.array([str(value) for value in values]),
        "decimal": pa.array(values, pa.decimal128(10, 3)),
    }
    labels = make_labels(
        config(kind="threshold", op=op, threshold=threshold), events(pa.chunked_array([arrays[kind]]))
    )
    exact = Decimal(repr(threshold))
    assert labels.tolist() == [float(OPERATORS[op](value, exact)) for value in values]


def test_ratings_around_2_to_the_24_are_told_apart():
    ratings = [16777216 + n % 4 for n in range(400)]
    labels = make_labels(config(kind="threshold", threshold=16777216), events(ratings))
    assert labels.sum() == 300


@pytest.mark.parametrize(
    "values",
    [
        [0.99999999],
        [np.float32(0.9999999)],
        ["0.99999999999999999999"],
        ["1e-400"],
        [Decimal("1.00000000000000000001")],
        [2**62],
        [-1],
    ],
)
def test_what_is_almost_a_given_label_is_none(values):
    with pytest.raises(DataError, match="neither 0 nor 1"):
        make_labels(config(kind="given"), events(pa.chunked_array([pa.array(values)])))
    for exact in (
        ["0", "1.000", "1e0"],
        [0, 1, 1],
        [0.0, 1.0, 1.0],
        [Decimal("0.00"), Decimal("1.00"), Decimal(1)],
    ):
        assert make_labels(config(kind="given"), events(exact)).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("threshold", "text"),
    [(3, "3"), (3.0, "3"), (3.5, "3.5"), (16777216, "16777216"), (0.1, "0.1"), (2**53 + 1, str(2**53 + 1))],
)
def test_the_rule_says_the_threshold_in_full(threshold, text):
    assert label_rule(config(kind="threshold", threshold=threshold)) == f"rating > {text}"
