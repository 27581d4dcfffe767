import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.metrics.brute import brute_gauc
from tests.metrics.made_up_users import population, scores_of
from trec_semid.core.errors import DataError, ShapeError
from trec_semid.metrics.auc import auc
from trec_semid.metrics.binary import binary_metrics
from trec_semid.metrics.bootstrap import USER_METRICS, bootstrap, bootstrap_user_means, draw_users
from trec_semid.metrics.gauc import gauc


def drawn_users(num_users, num_replicates, seed):
    return np.concatenate(list(draw_users(num_users, num_replicates, seed)))


def test_values_are_the_metrics_themselves():
    rng = np.random.default_rng(0)
    users, labels, skill = population(40, rng)
    scores = scores_of(users, labels, skill, rng)
    found = bootstrap(scores, labels, users, num_replicates=2)
    binary, group = binary_metrics(scores, labels), gauc(scores, labels, users)
    wanted = auc(scores, labels), group.gauc, group.user_mean, *binary[2:]
    assert [found[name].value for name in USER_METRICS] == pytest.approx(wanted, rel=1e-12)


def test_a_draw_equals_the_metrics_of_rows_repeated_as_often_as_their_user_was_drawn():
    rng = np.random.default_rng(1)
    users, labels, skill = population(12, rng)
    scores = np.round(scores_of(users, labels, skill, rng), 1)  # with ties
    found = bootstrap(scores, labels, users, num_replicates=5, seed=3)
    for replicate, times in enumerate(drawn_users(12, 5, 3)):
        repeats = times[users].astype(int)
        rows = np.repeat(np.arange(len(users)), repeats)
        # Copies of a user are users of their own in GAUC; over all rows they are just more rows.
        copy = np.concatenate([np.arange(n) for n in repeats]) if len(rows) else rows
        group = brute_gauc(scores[rows].tolist(), labels[rows].tolist(), (users[rows] * 100 + copy).tolist())
        drawn = {name: each.draws[replicate] for name, each in found.items()}
        assert drawn["auc"] == pytest.approx(roc_auc_score(labels[rows], scores[rows]), abs=1e-12)
        assert (drawn["gauc"], drawn["gauc_user_mean"]) == pytest.approx(group[:2], abs=1e-12)
        binary = binary_metrics(scores[rows], labels[rows])
        probability = [drawn[name] for name in USER_METRICS[3:]]
        assert probability == pytest.approx(binary[2:], rel=1e-10)


def test_every_draw_has_as_many_users_as_there_are_and_seeds_fix_it():
    first, again, other = drawn_users(50, 200, 0), drawn_users(50, 200, 0), drawn_users(50, 200, 1)
    assert (first.sum(axis=1) == 50).all()
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.var() == pytest.approx(1 - 1 / 50, rel=0.05)


def test_draws_in_chunks_equal_draws_at_once(monkeypatch):
    whole = drawn_users(30, 20, 0)
    monkeypatch.setattr("trec_semid.metrics.bootstrap._CELLS", 70)
    np.testing.assert_array_equal(drawn_users(30, 20, 0), whole)


def test_metrics_that_the_rows_do_not_define_are_left_out():
    found = bootstrap([0.2, 0.4, 0.6], [0, 0, 0], [0, 1, 1], num_replicates=10)
    assert set(found) == {"log_loss"}


def test_logits_may_be_ranked_but_have_no_log_loss():
    rows = [-3.0, 2.0, 1.0, 5.0], [0, 1, 0, 1], [0, 0, 1, 1]
    assert set(bootstrap(*rows, metrics=["auc", "gauc"], num_replicates=10)) == {"auc", "gauc"}
    with pytest.raises(DataError, match="probability"):
        bootstrap(*rows, num_replicates=10)


def test_one_user_has_no_bootstrap():
    assert bootstrap([0.2, 0.4], [0, 1], [5, 5]) == {}
    assert bootstrap([], [], []) == {}


def test_draws_are_those_of_a_plain_loop_over_drawn_users():
    random = np.random.default_rng(0)
    full, holed = random.random(40), np.where(random.random(40) < 0.5, random.random(40), np.nan)
    rows = np.arange(40), np.arange(40)
    found = bootstrap_user_means({"full": full, "holed": holed}, *rows, num_replicates=50, seed=3)
    times = np.concatenate(list(draw_users(40, 50, 3))).astype(int)
    for name, column in (("full", full), ("holed", holed)):
        assert found[name].value == pytest.approx(np.nanmean(column))
        for draw, often in zip(found[name].draws, times, strict=True):
            picked = [column[user] for user in range(40) for _ in range(often[user])]
            assert draw == pytest.approx(np.nanmean(picked))


def test_metrics_that_no_user_defines_are_left_out_and_one_user_says_nothing():
    values = {"some": np.array([1.0, np.nan]), "none": np.full(2, np.nan)}
    assert list(bootstrap_user_means(values, [0, 1], [5, 6])) == ["some"]
    assert bootstrap_user_means({"m": [1.0]}, [0], [5]) == {}


def test_metrics_must_be_over_the_same_users():
    with pytest.raises(ShapeError, match="different users"):
        bootstrap_user_means({"a": np.ones(3), "b": np.ones(4)}, np.arange(3), np.arange(3))


def test_users_who_count_are_told():
    found = bootstrap([0.2, 0.4, 0.6, 0.1, 0.3], [0, 1, 0, 0, 1], [0, 0, 1, 2, 2], num_replicates=3)
    assert {name: each.num_users for name, each in found.items()} == {
        name: 2 if name.startswith("gauc") else 3 for name in USER_METRICS
    }
    means = bootstrap_user_means({"m": [1.0, np.nan, 0.0]}, [0, 1, 2], [5, 6, 7])
    assert means["m"].num_users == 2
