import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.errors import DataError
from trec_semid.data.events.filters import FilterConfig, k_core

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40)


def slow_core(pairs, min_user, min_item):
    left = set(range(len(pairs)))
    while True:
        users, items = [pairs[i][0] for i in left], [pairs[i][1] for i in left]
        few = {i for i in left if users.count(pairs[i][0]) < min_user or items.count(pairs[i][1]) < min_item}
        if not few:
            return left
        left -= few


@settings(deadline=None)
@given(PAIRS, st.integers(0, 4), st.integers(0, 4))
def test_core_equals_removal_event_by_event(pairs, min_user, min_item):
    users, items = np.array(pairs).T
    config = FilterConfig(min_user_events=min_user, min_item_events=min_item)
    expected = slow_core(pairs, min_user, min_item)
    if not expected:
        with pytest.raises(DataError, match=r"no event is left"):
            k_core(users, items, 6, 6, config)
        return
    core = k_core(users, items, 6, 6, config)
    assert set(np.flatnonzero(core.events)) == expected
    events_of_user = [sum(pairs[i][0] == user for i in expected) for user in range(6)]
    assert core.users.tolist() == [n >= min_user for n in events_of_user]
    assert core.items[[pairs[i][1] for i in expected]].all()


def test_items_without_events_stay_unless_a_minimum_is_asked_for():
    users, items = np.array([0, 0]), np.array([0, 0])
    assert k_core(users, items, 1, 3, FilterConfig()).items.tolist() == [True, True, True]
    assert k_core(users, items, 1, 3, FilterConfig(min_item_events=1)).items.tolist() == [True, False, False]


def test_rule_is_said_in_words():
    assert FilterConfig().rule() == "none"
    rule = FilterConfig(min_user_events=5, min_item_events=3).rule("has_image")
    assert rule == "items where has_image; k-core: users with >= 5, items with >= 3 events"
    rule = FilterConfig(unknown_items="drop", unknown_users="drop", duplicates="drop").rule()
    assert rule == "no exact duplicates; no events of unknown items or unknown users"
