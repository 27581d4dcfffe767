import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score

from tests.metrics.brute import brute_gauc
from trec_semid.core.errors import DataError, ShapeError
from trec_semid.metrics.gauc import GaucAccumulator, gauc, per_user_auc

EXAMPLES = settings(max_examples=60, deadline=None)
TIED = st.sampled_from([-2.0, -0.0, 0.0, 0.5, 0.50000006, 3.0])


@st.composite
def grouped_rows(draw, dtype=np.float32):
    size = draw(st.integers(1, 50))
    scores = draw(hnp.arrays(dtype, size, elements=TIED.map(dtype)))
    users = draw(hnp.arrays(np.int64, size, elements=st.integers(0, 6)))
    return scores, draw(hnp.arrays(np.bool_, size)), users


def listed(rows):
    return tuple(column.tolist() for column in rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@EXAMPLES
@given(data=st.data())
def test_gauc_is_what_pair_counting_gives(dtype, data):
    rows = data.draw(grouped_rows(dtype))
    wanted = brute_gauc(*listed(rows))
    if not wanted[2]:
        with pytest.raises(DataError, match="user with both classes"):
            gauc(*rows)
        return
    found = gauc(*rows)
    assert found[:2] == pytest.approx(wanted[:2], abs=1e-14)
    assert found[2:] == wanted[2:]


@EXAMPLES
@given(grouped_rows(), st.randoms(use_true_random=False))
def test_per_user_auc_does_not_depend_on_row_order(rows, random):
    order = list(range(len(rows[0])))
    random.shuffle(order)
    for mine, theirs in zip(per_user_auc(*rows), per_user_auc(*(c[order] for c in rows)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@EXAMPLES
@given(grouped_rows(), st.integers(1, 20), st.integers(1, 60))
def test_accumulator_is_exact_for_any_updates_and_any_memory_bound(rows, num_updates, max_rows):
    accumulator = GaucAccumulator(max_rows=max_rows)
    for part in np.array_split(np.arange(len(rows[0])), num_updates):
        accumulator.update(*(column[part] for column in rows))
    found, wanted = accumulator.result(), brute_gauc(*listed(rows))
    assert found[:2] == pytest.approx(wanted[:2], abs=1e-14, nan_ok=True)
    assert found[2:] == wanted[2:]


@EXAMPLES
@given(grouped_rows(), st.randoms(use_true_random=False))
def test_order_of_updates_does_not_matter(rows, random):
    parts = np.array_split(np.arange(len(rows[0])), 5)
    results = []
    for _ in range(2):
        accumulator = GaucAccumulator(max_rows=8)
        for part in parts:
            accumulator.update(*(column[part] for column in rows))
        results.append(accumulator.result())
        random.shuffle(parts)
    assert results[0] == pytest.approx(results[1], abs=1e-15, nan_ok=True)


def test_weights_are_impressions_and_one_class_users_are_left_out():
    users = [0, 0, 0, 0, 1, 1, 2, 2]
    labels = [0, 0, 1, 1, 0, 1, 1, 1]  # user 2 has no negative
    scores = [0.1, 0.2, 0.3, 0.4, 0.9, 0.1, 0.5, 0.6]  # user 0: AUC 1, user 1: AUC 0
    found = gauc(scores, labels, users)
    assert (found.gauc, found.user_mean) == (4 / 6, 1 / 2)
    assert (found.num_users, found.num_one_class, found.num_rows) == (2, 1, 6)


def test_per_user_auc_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    users = rng.integers(0, 30, 4000) * 10**12 - 5  # too large to pack: renumbered
    labels = rng.random(4000) < 0.3
    scores = np.round(rng.normal(size=4000), 1)
    each = per_user_auc(scores, labels, users)
    assert each.users.tolist() == sorted(set(users.tolist()))
    for user, rows, positives, area in zip(*each, strict=True):
        own = users == user
        assert (rows, positives) == (own.sum(), labels[own].sum())
        assert area == pytest.approx(roc_auc_score(labels[own], scores[own]), abs=1e-14)


def test_users_may_be_names():
    assert gauc([0.1, 0.9, 0.5], [0, 1, 1], ["ann", "ann", "bob"]).gauc == 1.0


def test_one_user_larger_than_the_memory_bound_is_exact():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 500, 20_000).astype(np.float32)
    labels, users = rng.random(20_000) < 0.5, np.where(rng.random(20_000) < 0.9, 3, 4)
    accumulator = GaucAccumulator(max_rows=1000)
    accumulator.update(scores, labels, users)
    assert accumulator.result() == pytest.approx(gauc(scores, labels, users), abs=1e-14)


def test_equal_scores_everywhere_give_one_half_under_any_bound():
    accumulator = GaucAccumulator(max_rows=100)
    accumulator.update(np.full(5000, 0.3, np.float32), np.arange(5000) % 3 == 0, np.arange(5000) % 2)
    assert accumulator.result()[:4] == (0.5, 0.5, 2, 0)


def test_unequal_lengths_are_refused():
    with pytest.raises(ShapeError, match="users"):
        gauc([0.1, 0.2], [0, 1], [0])
