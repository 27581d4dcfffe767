import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter

from trec_semid.core.errors import DataError
from trec_semid.data.labels import LabelConfig, check_label_columns, label_rule, make_labels
from trec_semid.data.raw.events import RawEvents


def config(**values):
    return TypeAdapter(LabelConfig).validate_python(values)


def events(ratings=None, behaviours=None, names=()):
    count = len(ratings if ratings is not None else behaviours)
    ids = pa.array(["a"])
    return RawEvents(
        np.zeros(count, np.int32),
        np.zeros(count, np.int32),
        None if ratings is None else np.array(ratings, np.float32),
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
