import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.errors import ShapeError
from trec_semid.metrics.retrieval import ndcg_at, per_user_retrieval, recall_at

USERS = st.lists(st.sets(st.integers(1, 30), max_size=6), min_size=1, max_size=8)


@settings(deadline=None)
@given(USERS, st.integers(1, 12))
def test_recall_and_ndcg_equal_walking_the_list_of_every_user(users, cutoff):
    positions = np.array([rank for targets in users for rank in sorted(targets)], np.int64)
    lengths = np.array([len(targets) for targets in users], np.int64)
    found = per_user_retrieval(positions, lengths, [cutoff])
    for user, targets in enumerate(users):
        recall, ndcg = found[f"recall@{cutoff}"][user], found[f"ndcg@{cutoff}"][user]
        if not targets:
            assert math.isnan(recall)
            assert math.isnan(ndcg)
            continue
        shown = [place in targets for place in range(1, cutoff + 1)]
        assert recall == pytest.approx(sum(shown) / len(targets))
        dcg = sum(hit / math.log2(place + 1) for place, hit in enumerate(shown, 1))
        ideal = sum(1 / math.log2(place + 1) for place in range(1, min(cutoff, len(targets)) + 1))
        assert ndcg == pytest.approx(dcg / ideal)


def test_lengths_must_fit():
    with pytest.raises(ShapeError, match=r"2 targets, but lengths sum up to 3"):
        recall_at(np.array([1, 2]), np.array([3]), 5)
    with pytest.raises(ShapeError):
        ndcg_at(np.array([1, 2]), np.array([3]), 5)
