from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trec_semid.core.errors import DataError, ShapeError
from trec_semid.metrics.keys import (
    check_float32,
    check_labels,
    check_scores,
    check_users,
    dense_users,
    in_threads,
    pack,
    sort_keys,
)

EXAMPLES = settings(max_examples=60, deadline=None)
FLOATS = st.floats(width=32, allow_nan=False)


@EXAMPLES
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=FLOATS))
def test_packed_float32_keeps_order_and_ties_of_every_pair(scores):
    keys = pack(scores, np.zeros(len(scores), bool)).astype(object)
    for i in range(len(scores)):
        for j in range(len(scores)):
            assert (scores[i] < scores[j]) == (keys[i] < keys[j])
            assert (scores[i] == scores[j]) == (keys[i] == keys[j])


@EXAMPLES
@given(hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(allow_nan=False)))
def test_packed_float64_keeps_order_and_ties_of_every_pair(scores):
    keys = pack(scores, np.zeros(len(scores), bool)).astype(object)
    order = np.argsort(scores, kind="stable")
    assert all((scores[a] < scores[b]) == (keys[a] < keys[b]) for a, b in pairwise(order))
    assert all((scores[a] == scores[b]) == (keys[a] == keys[b]) for a in order for b in order)


def test_key_holds_user_score_and_label_in_their_bits():
    key = pack(np.float32([0.0, -0.0]), np.array([True, False]), np.array([5, (1 << 31) - 1]))
    assert key[0] == (5 << 33) | (1 << 32) | 1  # 0.0 has the bits 0; the sign bit is set for order
    assert key[1] == (((1 << 31) - 1) << 33) | (1 << 32)


def test_rows_past_one_chunk_are_packed_alike():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=200_000).astype(np.float32), rng.random(200_000) < 0.5
    users = rng.integers(0, 50, 200_000)
    keys = pack(scores, labels, users)
    at = np.array([0, 65_535, 65_536, 199_999])
    np.testing.assert_array_equal(keys[at], pack(scores[at], labels[at], users[at]))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_keys_are_sorted_on_any_number_of_threads(num_threads, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: num_threads)
    keys = np.random.default_rng(0).integers(0, 1 << 63, 1_000_000).astype(np.uint64)
    wanted = np.sort(keys)
    sort_keys(keys)
    np.testing.assert_array_equal(keys, wanted)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_work_in_threads_keeps_its_order_and_its_errors(num_threads, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: num_threads)
    assert in_threads(lambda item: item * item, range(5)) == [0, 1, 4, 9, 16]
    assert in_threads(lambda item: item, []) == []
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda item: 1 // item, range(3))


def test_nan_score_is_refused_and_its_row_named():
    with pytest.raises(DataError, match=r"row 3, field 'score'.*nan") as caught:
        check_scores(np.float32([0.1, 0.2, np.nan, np.nan]))
    assert caught.value.row == 3


def test_infinite_scores_have_an_order():
    keys = pack(check_scores(np.float32([-np.inf, -1, 1, np.inf])), np.zeros(4, bool))
    assert (np.diff(keys.astype(object)) > 0).all()


@pytest.mark.parametrize("bad", [2, -1, 0.5, np.nan])
def test_label_that_is_no_class_is_refused_and_its_row_named(bad):
    with pytest.raises(DataError, match="row 2, field 'label'"):
        check_labels(np.array([0, bad, 1.0]), 3)


@pytest.mark.parametrize("bad", [-1, 1 << 31])
def test_user_that_is_no_dense_row_is_refused_and_its_row_named(bad):
    with pytest.raises(DataError, match="row 2, field 'user'"):
        check_users(np.array([0, bad]), 2)


def test_users_that_are_not_integers_are_refused_by_type():
    with pytest.raises(DataError, match="float64"):
        check_users(np.array([0.0, 1.0]), 2)


def test_any_users_become_dense_and_keep_their_names():
    dense, names = dense_users(np.array([1 << 40, -7, 1 << 40]), 3)
    assert dense.tolist() == [1, 0, 1]
    assert names.tolist() == [-7, 1 << 40]
    assert dense_users(np.array([3, 1, 3]), 3)[1] is None


def test_unequal_lengths_are_refused():
    with pytest.raises(ShapeError, match="labels"):
        check_labels([0, 1], 3)
    with pytest.raises(ShapeError, match="users"):
        check_users(np.array([0, 1]), 3)
    with pytest.raises(ShapeError, match="users"):
        dense_users(np.array([-1, 1]), 3)
    with pytest.raises(ShapeError, match="scores"):
        check_scores(np.zeros((2, 2)))


def test_float64_is_refused_where_rows_of_other_updates_must_compare():
    with pytest.raises(DataError, match="float32"):
        check_float32(np.zeros(3))
    assert check_float32(np.zeros(3, np.float16)).dtype == np.float32
