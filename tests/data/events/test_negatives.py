import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.errors import DataError
from trec_semid.data.events.negatives import NegativesConfig, add_negatives, draw_untouched

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), min_size=1, max_size=30)


@settings(deadline=None)
@given(PAIRS, st.integers(1, 3), st.sampled_from(["popularity", "uniform"]), st.integers(0, 5))
def test_negatives_follow_their_positive_and_are_never_touched_by_their_user(pairs, per, strategy, seed):
    users, items = np.array(pairs).T
    touched = set(pairs)
    num_items = 10  # 8 and 9 are touched by nobody, so something is always left under 'uniform'
    weights = np.bincount(items, minlength=num_items) + (strategy == "popularity") * np.eye(num_items)[9]
    targets = np.arange(len(users)) % 2 == 0
    config = NegativesConfig(per_positive=per, strategy=strategy)
    sampled = add_negatives(config, users, items, targets, weights, seed)
    expected = [i for i in range(len(users)) for _ in range(1 + per * targets[i])]
    assert sampled.source.tolist() == expected
    for row, (source, item) in enumerate(zip(sampled.source, sampled.items, strict=True)):
        is_first = row == 0 or sampled.source[row - 1] != source
        assert sampled.is_negative[row] == (not is_first)
        assert ((users[source], item) in touched) == is_first
        if not is_first and strategy == "popularity":
            assert weights[item] > 0


def test_popularity_negatives_are_as_popular_as_training():
    rng = np.random.default_rng(0)
    weights = np.array([0, 1, 2, 3, 4, 0, 90])
    wanted = rng.integers(0, 50, 20_000)
    drawn = draw_untouched(wanted, np.array([99]), np.array([0]), weights, 0)
    shares = np.bincount(drawn, minlength=7) / len(drawn)
    np.testing.assert_allclose(shares, weights / 100, atol=4 * np.sqrt(0.09 / 20_000))


def test_user_who_touched_nearly_all_gets_exactly_what_is_left():
    items = np.arange(1000)
    users = np.zeros(999, int)
    weights = np.ones(1000)
    weights[:999] = 1e9  # rejection alone would practically never find the last one
    drawn = draw_untouched(np.zeros(50, int), users, items[:999], weights, 0)
    assert (drawn == 999).all()


def test_user_who_touched_everything_is_refused():
    with pytest.raises(DataError, match=r"user row 1, who touched every item"):
        draw_untouched(np.array([1]), np.array([1, 1, 0]), np.array([0, 1, 0]), np.ones(2), 0)


def test_same_seed_same_negatives():
    arguments = np.zeros(100, int), np.array([0]), np.array([0]), np.ones(50)
    np.testing.assert_array_equal(draw_untouched(*arguments, 3), draw_untouched(*arguments, 3))
    assert not np.array_equal(draw_untouched(*arguments, 3), draw_untouched(*arguments, 4))


def test_other_strategy_is_advised_only_where_it_has_an_item_left_to_draw():
    users, items = np.array([0, 0]), np.array([0, 1])
    with pytest.raises(DataError, match=r"Filter such users out$"):
        draw_untouched(np.array([0]), users, items, np.ones(2), 0)
    with pytest.raises(DataError, match='strategy = "uniform"'):
        draw_untouched(np.array([0]), users, items, np.array([1.0, 1.0, 0.0]), 0)
    assert draw_untouched(np.array([0]), users, items, np.ones(3), 0).tolist() == [2]
