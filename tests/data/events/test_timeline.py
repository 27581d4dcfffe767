import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.errors import DataError
from trec_semid.data.events.linking import Linked
from trec_semid.data.events.negatives import NegativesConfig
from trec_semid.data.events.splits import LeaveOneOut
from trec_semid.data.events.timeline import arrange, describe_splits, with_negatives
from trec_semid.data.schema import SPLITS

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=40)


def timeline(rows, behaviours=None, labels=None):
    users, items, times = np.array(rows).T
    labels = np.ones(len(rows), np.float32) if labels is None else np.array(labels, np.float32)
    events = Linked(users.astype(np.int32), items.astype(np.int32), labels, times * 10**6, None, None)
    return arrange(events, behaviours or [], LeaveOneOut(), "shuffled", 0)


def enough(rows):
    return [row for user in range(3) for row in [(user, 0, 0), (user, 1, 5), (user, 2, 9)]] + rows


@settings(deadline=None)
@given(ROWS)
def test_split_facts_equal_sets_of_users_and_items(rows):
    line = timeline(enough(rows))
    facts = describe_splits(line, 4, 6)
    seen_users = {u for u, p in zip(line.users, line.parts, strict=True) if p == 0}
    seen_items = {i for i, p in zip(line.items, line.parts, strict=True) if p == 0}
    for part, name in enumerate(SPLITS):
        mine = [(u, i) for u, i, p in zip(line.users, line.items, line.parts, strict=True) if p == part]
        users, items = {u for u, _ in mine}, {i for _, i in mine}
        assert facts[name].model_dump() == {
            "events": len(mine),
            "users": len(users),
            "items": len(items),
            "unseen_users": len(users - seen_users),
            "unseen_items": len(items - seen_items),
            "unseen_item_events": sum(i not in seen_items for _, i in mine),
            "positives": len(mine),
            "negatives": 0,
        }


@settings(deadline=None)
@given(ROWS, st.integers(1, 2))
def test_negatives_share_time_order_and_part_of_their_positive(rows, per):
    plain = timeline(enough(rows))
    line = with_negatives(plain, NegativesConfig(per_positive=per, strategy="uniform", splits=["test"]), 9, 0)
    assert not line.is_negative[line.parts != SPLITS.index("test")].any()
    assert len(line.users) == len(plain.users) + per * (plain.parts == SPLITS.index("test")).sum()
    np.testing.assert_array_equal(line.order[~line.is_negative], np.arange(len(plain.users)))
    for row in np.flatnonzero(line.is_negative):
        positive = line.order[row]
        assert line.users[row] == plain.users[positive]
        assert line.times[row] == plain.times[positive]
        assert line.parts[row] == plain.parts[positive]
        assert (line.labels[row], line.behaviour_names[line.behaviours[row]]) == (0, "negative")
    assert (np.diff(line.order) >= 0).all()


def test_items_that_only_negatives_show_in_training_stay_unseen():
    line = timeline([(0, 0, 0), (0, 1, 1), (0, 2, 2)])
    line = with_negatives(line, NegativesConfig(per_positive=20, strategy="uniform"), 5, 0)
    facts = describe_splits(line, 1, 5)
    assert (facts["train"].events, facts["train"].negatives, facts["train"].items) == (21, 20, 1)
    assert (facts["test"].events, facts["test"].negatives, facts["test"].items) == (21, 20, 1)
    assert (facts["test"].unseen_items, facts["test"].unseen_item_events) == (1, 1)


def test_negatives_that_cannot_be_are_refused():
    rows = [(0, 0, 0), (0, 1, 1), (0, 2, 2)]
    with pytest.raises(DataError, match="kept for sampled negatives"):
        timeline(rows, ["negative"])  # with or without the section: readers go by the name
    with pytest.raises(DataError, match="no positive event"):
        with_negatives(timeline(rows, labels=[0, 0, 0]), NegativesConfig(), 3, 0)
