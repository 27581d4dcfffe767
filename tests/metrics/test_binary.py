import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss

from trec_semid.core.errors import DataError, ShapeError
from trec_semid.metrics.binary import (
    BinaryAccumulator,
    binary_metrics,
    calibration,
    log_loss,
    normalised_entropy,
    reliability,
)

EXAMPLES = settings(max_examples=60, deadline=None)
PROBABILITY = st.floats(0, 1, width=32)


def some_rows(num_rows=1000, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.beta(1, 3, num_rows).astype(np.float32)
    return scores, rng.random(num_rows) < scores


@EXAMPLES
@given(st.lists(st.tuples(PROBABILITY, st.booleans()), min_size=1, max_size=30))
def test_metrics_are_their_formulas(rows):
    found = binary_metrics(*(np.array(column) for column in zip(*rows, strict=True)))
    clipped = [(min(max(p, 2**-23), 1 - 2**-23), y) for p, y in rows]
    loss = -sum(math.log(p) if y else math.log(1 - p) for p, y in clipped) / len(rows)
    positives = sum(y for _, y in rows)
    assert (found.rows, found.positives) == (len(rows), positives)
    assert found.log_loss == pytest.approx(loss, rel=1e-9)
    if positives:
        assert found.calibration == pytest.approx(sum(p for p, _ in rows) / positives, rel=1e-9)
    if 0 < positives < len(rows):
        q = positives / len(rows)
        entropy = -(q * math.log(q) + (1 - q) * math.log(1 - q))
        assert found.normalised_entropy == pytest.approx(loss / entropy, rel=1e-9)
    else:
        assert math.isnan(found.normalised_entropy)


def test_log_loss_agrees_with_scikit_learn():
    scores, labels = some_rows()
    scores[:2], labels[:2] = [0, 1], [True, False]  # infinite but for the clip
    assert log_loss(scores, labels) == pytest.approx(sklearn_log_loss(labels, scores), rel=1e-6)


def test_predicting_the_base_rate_has_entropy_and_calibration_one():
    labels = np.arange(10) < 3
    assert normalised_entropy(np.full(10, 0.3), labels) == pytest.approx(1)
    assert calibration(np.full(10, 0.3), labels) == pytest.approx(1)
    assert calibration(np.full(10, 0.6), labels) == pytest.approx(2)


@pytest.mark.parametrize("metric", [log_loss, normalised_entropy, calibration])
def test_what_the_rows_do_not_define_is_refused(metric):
    with pytest.raises(DataError, match="needs"):
        metric([], [])


def test_normalised_entropy_of_one_class_is_refused():
    with pytest.raises(DataError, match="both classes"):
        normalised_entropy([0.5, 0.5], [1, 1])


@pytest.mark.parametrize("bad", [-0.1, 1.5, np.nan, np.inf])
def test_score_that_is_no_probability_is_refused_and_its_row_named(bad):
    with pytest.raises(DataError, match="row 2, field 'score'"):
        log_loss([0.5, bad], [0, 1])


def test_unequal_lengths_are_refused():
    with pytest.raises(ShapeError):
        log_loss([0.5, 0.5], [0])


def test_accumulator_in_any_order_equals_all_rows_at_once():
    scores, labels = some_rows()
    whole = binary_metrics(scores, labels)
    for seed in range(3):
        accumulator = BinaryAccumulator()
        order = np.random.default_rng(seed).permutation(len(scores))
        for part in np.array_split(order, 9):
            accumulator.update(scores[part], labels[part])
        assert accumulator.result() == pytest.approx(whole, rel=1e-12)
        assert accumulator.local_result() == pytest.approx(whole, rel=1e-12)


def test_accumulator_without_rows_has_no_metrics():
    found = BinaryAccumulator().result()
    assert found[:2] == (0, 0)
    assert all(math.isnan(value) for value in found[2:])


def test_reliability_bins_are_equal_parts_by_score():
    scores, labels = some_rows(1003)
    bins = reliability(scores, labels, num_bins=10)
    assert bins.rows.sum() == 1003
    assert set(bins.rows.tolist()) <= {100, 101}
    order = np.argsort(scores)
    np.testing.assert_allclose(bins.mean_score[0], scores[order[: bins.rows[0]]].mean(), rtol=1e-6)
    np.testing.assert_allclose(bins.positive_share[-1], labels[order[-bins.rows[-1] :]].mean())
    assert (bins.rows * bins.positive_share).sum() == pytest.approx(labels.sum())


def test_reliability_bins_keep_ties_together():
    bins = reliability([0.1] * 90 + [0.2] * 10, [0] * 100, num_bins=10)
    assert bins.rows.tolist() == [90, 10]
    np.testing.assert_allclose(bins.mean_score, [0.1, 0.2])
