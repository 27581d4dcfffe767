import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.errors import DataError, ShapeError
from trec_semid.metrics.retrieval import ndcg_at, per_user_retrieval, rank_targets, recall_at

USERS = st.lists(st.sets(st.integers(1, 30), max_size=6), min_size=1, max_size=8)


@settings(deadline=None)
@given(USERS, st.integers(1, 12))
def test_recall_and_ndcg_equal_walking_the_list_of_every_user(users, cutoff):
    ranks = np.array([rank for targets in users for rank in sorted(targets)], np.int64)
    lengths = np.array([len(targets) for targets in users], np.int64)
    found = per_user_retrieval(ranks, lengths, [cutoff])
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


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1), st.booleans())
def test_ranks_are_places_in_the_sorted_list(seed, masked):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 5, (4, 12)).astype(np.float32)  # many ties
    targets = random.integers(0, 12, 4)
    allowed = random.random((4, 12)) < 0.6 if masked else None
    ranks = rank_targets(scores, targets, allowed)
    for user, target in enumerate(targets):
        rows = [row for row in range(12) if allowed is None or allowed[user, row] or row == target]
        listed = sorted(rows, key=lambda row: (-scores[user, row], row))
        assert ranks[user] == listed.index(target) + 1


def test_scores_that_are_no_numbers_are_refused():
    scores = np.array([[0.0, 1.0], [np.nan, 0.0]])
    with pytest.raises(DataError, match=r"score is NaN"):
        rank_targets(scores, np.array([0, 0]))


def test_lengths_must_fit():
    with pytest.raises(ShapeError, match=r"2 targets, but lengths sum up to 3"):
        recall_at(np.array([1, 2]), np.array([3]), 5)
    with pytest.raises(ShapeError):
        ndcg_at(np.array([1, 2]), np.array([3]), 5)
