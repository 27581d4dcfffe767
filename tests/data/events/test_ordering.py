import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.data.events.ordering import count_ties, sort_events, stable_argsort, tie_rule

WIDE = st.integers(-(2**63), 2**63 - 1)
KEYS = st.lists(
    st.one_of(st.integers(0, 3), WIDE, st.integers(0, 5).map(lambda s: s * 1_000_000)), min_size=1
)


@settings(deadline=None)
@given(KEYS)
def test_packed_argsort_equals_numpys_stable_sort(keys):
    keys = np.array(keys, np.int64)
    np.testing.assert_array_equal(stable_argsort(keys), np.argsort(keys, kind="stable"))


def test_packed_argsort_of_nothing_is_nothing():
    assert stable_argsort(np.zeros(0, np.int64)).tolist() == []


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=50), st.integers(0, 3))
def test_shuffled_order_is_a_permutation_sorted_by_time_and_repeats_with_the_seed(times, seed):
    times = np.array(times)
    order = sort_events(times, None, len(times), "shuffled", seed)
    assert sorted(order) == list(range(len(times)))
    assert (np.diff(times[order]) >= 0).all()
    np.testing.assert_array_equal(order, sort_events(times, None, len(times), "shuffled", seed))


def test_shuffled_ties_lose_the_order_of_the_file():
    times = np.zeros(1000, np.int64)
    order = sort_events(times, None, 1000, "shuffled", 0)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    assert not np.array_equal(order, sort_events(times, None, 1000, "shuffled", 1))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=30))
def test_published_ties_follow_position_and_then_the_file(rows):
    times, positions = np.array(rows).T
    expected = sorted(range(len(rows)), key=lambda i: (rows[i][0], rows[i][1], i))
    assert sort_events(times, positions, len(rows), "published", 0).tolist() == expected
    by_time = sorted(range(len(rows)), key=lambda i: (rows[i][0], i))
    assert sort_events(times, None, len(rows), "published", 0).tolist() == by_time


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=30))
def test_ties_are_events_that_share_user_and_time(rows):
    rows = sorted(rows, key=lambda row: row[1])
    users, times = np.array(rows).T
    expected = sum(rows.count(row) > 1 for row in rows)
    assert count_ties(users, times, np.argsort(users, kind="stable")) == expected


def test_tie_rule_is_unknown_without_times():
    assert tie_rule("shuffled", 0, has_times=False) == "ties unknown"
    assert tie_rule("shuffled", 7, has_times=True) == "equal timestamps shuffled with seed 7"
    assert "published" in tie_rule("published", 7, has_times=True)
