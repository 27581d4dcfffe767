import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from tests.metrics.brute import brute_auc
from trec_semid.core.errors import DataError, ShapeError
from trec_semid.metrics.auc import AucAccumulator, auc, roc_curve

EXAMPLES = settings(max_examples=60, deadline=None)
TIED = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 0.25000003, 1e-30, 7.0])


@st.composite
def tied_rows(draw, min_size=2):
    size = draw(st.integers(min_size, 40))
    labels = draw(hnp.arrays(np.bool_, size))
    labels[:2] = [False, True]
    return draw(hnp.arrays(np.float32, size, elements=TIED.map(np.float32))), labels


@EXAMPLES
@given(tied_rows())
def test_auc_is_the_share_of_rightly_ordered_pairs_with_ties_one_half(rows):
    scores, labels = rows
    assert auc(scores, labels) == brute_auc(scores.tolist(), labels.tolist())


@EXAMPLES
@given(tied_rows(), st.randoms(use_true_random=False))
def test_auc_does_not_depend_on_row_order(rows, random):
    scores, labels = rows
    order = list(range(len(scores)))
    random.shuffle(order)
    assert auc(scores[order], labels[order]) == auc(scores, labels)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_auc_agrees_with_scikit_learn(dtype):
    rng = np.random.default_rng(1)
    labels = rng.random(5000) < 0.2
    scores = np.round(rng.normal(size=5000) + labels, 2).astype(dtype)
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-14)


def test_float64_scores_are_not_tied_by_rounding_to_float32():
    scores = np.array([1.0, 1.0 + 1e-12])
    assert auc(scores, [0, 1]) == 1.0
    assert auc(scores.astype(np.float32), [0, 1]) == 0.5


def test_auc_of_one_class_is_refused():
    with pytest.raises(DataError, match="3 rows with 0 positives"):
        auc([0.1, 0.2, 0.3], [0, 0, 0])


def test_accumulator_over_updates_equals_auc_of_all_rows():
    rng = np.random.default_rng(2)
    scores, labels = rng.integers(0, 50, 3000).astype(np.float32), rng.random(3000) < 0.3
    accumulator = AucAccumulator()
    assert np.isnan(accumulator.result())
    for part in np.array_split(np.arange(3000), 7):
        accumulator.update(scores[part], labels[part])
    assert accumulator.result() == auc(scores, labels)
    assert accumulator.result() == auc(scores, labels)  # asking does not use the rows up
    accumulator.update(np.float32([0.5]), [1])
    assert accumulator.result() == auc(np.append(scores, 0.5), np.append(labels, True))


@EXAMPLES
@given(tied_rows(min_size=10), st.integers(1, 9))
def test_accumulator_that_spills_to_disk_is_exact(rows, max_rows):
    scores, labels = rows
    accumulator = AucAccumulator(max_rows=max_rows)
    accumulator.update(scores, labels)
    assert accumulator.result() == pytest.approx(brute_auc(scores.tolist(), labels.tolist()), abs=1e-15)


def test_roc_curve_has_the_corners_that_scikit_learn_finds():
    rng = np.random.default_rng(3)
    labels = rng.random(300) < 0.4
    scores = np.round(rng.normal(size=300) + labels, 1).astype(np.float32)
    curve = roc_curve(scores, labels, num_points=1000)
    wanted = sklearn_roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.false_positive_share, wanted[0])
    np.testing.assert_allclose(curve.true_positive_share, wanted[1])


def test_thinned_roc_curve_starts_and_ends_in_the_corners():
    rng = np.random.default_rng(4)
    labels = rng.random(5000) < 0.4
    curve = roc_curve(rng.normal(size=5000) + labels, labels, num_points=64)
    assert len(curve.false_positive_share) <= 65
    assert (curve.false_positive_share[0], curve.true_positive_share[0]) == (0, 0)
    assert (curve.false_positive_share[-1], curve.true_positive_share[-1]) == (1, 1)
    assert (np.diff(curve.true_positive_share) >= 0).all()


def test_unequal_lengths_are_refused():
    with pytest.raises(ShapeError):
        auc([0.1, 0.2], [0, 1, 1])
