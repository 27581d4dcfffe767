"""Planted users of several interests: what is drawn is what the equations say."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tools import planted_interests
from tools.planted_interests import EVENTS, INTERESTS, OF_USER, STAY, best_scores, draw_users, write

N = 400


@pytest.fixture(scope="module")
def users() -> planted_interests.Users:
    return draw_users(4_000, N, np.random.default_rng(0))


def test_a_user_has_its_own_interests_and_no_item_twice(users: planted_interests.Users):
    interests = np.take_along_axis(users.interests, users.said, 1)
    assert (users.items % INTERESTS == interests).all()
    assert (np.sort(users.items, 1)[:, 1:] != np.sort(users.items, 1)[:, :-1]).all()
    assert all(len(set(own)) == OF_USER for own in users.interests.tolist())


def test_an_interest_stays_as_often_as_said(users: planted_interests.Users):
    """P(the same again) = STAY + (1 - STAY) E sum w^2; of Dirichlet(2) E sum w^2 = 3 / (2 M + 1)."""
    same = (users.said[:, 1:] == users.said[:, :-1]).mean()
    assert same == pytest.approx(STAY + (1 - STAY) * 3 / (2 * OF_USER + 1), abs=0.01)


def test_scores_are_the_probabilities_of_the_last_event(users: planted_interests.Users):
    few = planted_interests.Users(*(part[:3] for part in users))
    scores = best_scores(few, N)
    assert scores.sum(1) == pytest.approx(1.0)
    for user in range(3):
        seen, last = set(few.items[user, :-1].tolist()), few.said[user, -2]
        for m, interest in enumerate(few.interests[user]):
            unseen = [item for item in range(interest, N, INTERESTS) if item not in seen]
            mass = sum(1 / (item // INTERESTS + 1) for item in unseen)
            for item in unseen:
                share = STAY * (m == last) + (1 - STAY) * few.weights[user, m]
                assert scores[user, item] == pytest.approx(share / (item // INTERESTS + 1) / mass)


def test_targets_come_up_as_often_as_their_probabilities_say(users: planted_interests.Users):
    """Calibration: the mean probability of the last item is the mean over users of the sum of squares."""
    scores = best_scores(users, N)
    own = np.take_along_axis(scores, users.items[:, -1:], 1).mean()
    assert own == pytest.approx((scores**2).sum(1).mean(), rel=0.05)


def test_what_is_written_is_whole_and_the_same_for_a_seed(tmp_path: Path):
    best = write(tmp_path / "a", 50, N, 3)
    told = json.loads((tmp_path / "a/truth.json").read_text())
    assert best == write(tmp_path / "b", 50, N, 3) == told["best"]
    assert pq.read_table(tmp_path / "a/interactions.parquet").num_rows == 50 * EVENTS
    interests = pq.read_table(tmp_path / "a/items.parquet")["interest"].to_pylist()
    assert interests[:2] == ["interest 00", "interest 01"]
    assert np.load(tmp_path / "a/vectors.npy").shape == (N, planted_interests.DIM)
