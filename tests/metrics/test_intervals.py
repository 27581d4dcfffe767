import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.metrics.brute import brute_gauc
from trec_semid.core.errors import DataError
from trec_semid.metrics.auc import auc
from trec_semid.metrics.binary import binary_metrics
from trec_semid.metrics.gauc import gauc
from trec_semid.metrics.intervals import (
    USER_METRICS,
    Replicates,
    bootstrap,
    difference,
    draw_users,
    interval,
)


def drawn_users(num_users, num_replicates, seed):
    return np.concatenate(list(draw_users(num_users, num_replicates, seed)))


def population(num_users, rng):
    """Rows of users who differ in activity and in how predictable they are."""
    rows = rng.geometric(0.1, num_users) + 1
    users = np.repeat(np.arange(num_users), rows)
    labels = rng.random(len(users)) < 0.4
    skill = rng.normal(1.0, 0.8, num_users)[users]
    return users, labels, skill


def scores_of(users, labels, skill, rng, quality=1.0):
    logit = quality * skill * labels + rng.normal(size=len(users))
    return (1 / (1 + np.exp(-logit))).astype(np.float32)


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
    monkeypatch.setattr("trec_semid.metrics.intervals._CELLS", 70)
    np.testing.assert_array_equal(drawn_users(30, 20, 0), whole)


def test_standard_error_of_a_mean_is_the_closed_form():
    rng = np.random.default_rng(2)
    users = np.arange(400)
    scores, labels = rng.random(400), rng.random(400) < 0.5
    found = interval(
        [bootstrap(scores, labels, users, metrics=["log_loss"], num_replicates=2000)["log_loss"]]
    )
    losses = -np.log(np.where(labels, scores, 1 - scores))
    assert found.value == pytest.approx(losses.mean())
    assert found.standard_error == pytest.approx(losses.std() / 20, rel=0.05)
    assert found.low == pytest.approx(losses.mean() - 1.96 * losses.std() / 20, abs=0.1 * losses.std() / 20)


def test_interval_covers_the_true_gauc_95_times_in_100():
    rng = np.random.default_rng(3)
    users, labels, skill = population(40_000, rng)
    truth = gauc(scores_of(users, labels, skill, rng), labels, users).gauc
    covered = 0
    for _ in range(300):
        users, labels, skill = population(150, rng)
        scores = scores_of(users, labels, skill, rng)
        found = interval([bootstrap(scores, labels, users, metrics=["gauc"], num_replicates=200)["gauc"]])
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 300 <= 0.98  # standard error of a share of 300: 0.013


def paired_trial(rng, *, num_seeds=1, seed_sd=0.0, gain=0.0, num_users=150):
    users, labels, skill = population(num_users, rng)
    arms = []
    for quality in (1.0 + gain, 1.0):
        each_quality = quality + seed_sd * rng.normal(size=num_seeds)
        runs = [scores_of(users, labels, skill, rng, quality=q) for q in each_quality]
        arms.append(
            [bootstrap(run, labels, users, metrics=["gauc"], num_replicates=200)["gauc"] for run in runs]
        )
    return difference(*arms)


def test_equal_arms_are_told_apart_5_times_in_100():
    rng = np.random.default_rng(4)
    found = [paired_trial(rng) for _ in range(300)]
    assert 0.02 <= np.mean([each.p_value < 0.05 for each in found]) <= 0.08
    assert np.mean([not each.low <= 0 <= each.high for each in found]) <= 0.08
    assert np.mean([each.is_distinguishable for each in found]) <= 0.02  # the verdict asks for more


def test_equal_arms_whose_seeds_vary_are_told_apart_5_times_in_100():
    rng = np.random.default_rng(5)
    found = [paired_trial(rng, num_seeds=3, seed_sd=0.3) for _ in range(150)]
    assert 0.01 <= np.mean([each.p_value < 0.05 for each in found]) <= 0.1


def test_one_seed_alone_takes_the_luck_of_a_seed_for_a_difference():
    rng = np.random.default_rng(6)
    found = [paired_trial(rng, seed_sd=0.3) for _ in range(60)]
    assert np.mean([each.p_value < 0.05 for each in found]) > 0.15


def test_the_smallest_detectable_difference_is_found_four_times_in_five():
    rng = np.random.default_rng(7)
    smallest = np.mean([paired_trial(rng).smallest_detectable for _ in range(20)])
    gains = np.array([0.2, 0.6])
    effects = [np.mean([paired_trial(rng, gain=g, num_users=3000).value for _ in range(4)]) for g in gains]
    gain = float(np.interp(smallest, effects, gains))
    assert 0.2 < gain < 0.6
    found = [paired_trial(rng, gain=gain) for _ in range(200)]
    assert 0.7 <= np.mean([each.p_value < 0.05 for each in found]) <= 0.9


def test_pairing_makes_differences_of_like_runs_sharper_than_their_intervals():
    rng = np.random.default_rng(8)
    users, labels, skill = population(200, rng)
    scores = scores_of(users, labels, skill, rng)
    near = np.clip(scores + rng.normal(0, 0.01, len(scores)), 0, 1)
    one, other = (bootstrap(each, labels, users, metrics=["gauc"])["gauc"] for each in (scores, near))
    assert difference([one], [other]).standard_error < 0.2 * interval([one]).standard_error


def test_normal_draws_give_smallest_detectable_difference_of_2_8_standard_errors():
    rng = np.random.default_rng(9)
    first, second = (Replicates(v, v + rng.normal(0, 0.01, 200_000), "same") for v in (0.7, 0.7))
    found = difference([first], [second])
    assert found.smallest_detectable == pytest.approx((1.96 + 0.8416) * found.standard_error, rel=0.01)


def test_seed_variation_widens_an_interval_as_student_says():
    draws = np.full(200_000, 0.0)
    seeds = [Replicates(value, draws + value, "same") for value in (0.69, 0.70, 0.71)]
    found = interval(seeds)
    assert found.value == pytest.approx(0.70)
    assert found.standard_error == pytest.approx(0.01 / np.sqrt(3))
    assert found.high - found.value == pytest.approx(4.303 * 0.01 / np.sqrt(3), rel=0.02)  # t, 2 degrees
    paired = difference(seeds, seeds)
    assert paired.high == pytest.approx(2.776 * 0.01 * np.sqrt(2 / 3), rel=0.02)  # t, 4 degrees


def test_a_run_compared_with_itself_does_not_differ():
    rng = np.random.default_rng(10)
    users, labels, skill = population(50, rng)
    run = bootstrap(scores_of(users, labels, skill, rng), labels, users, num_replicates=100)
    for name in USER_METRICS:
        found = difference([run[name]], [run[name]])
        assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)
        assert not found.is_distinguishable


def test_runs_over_other_rows_cannot_be_paired():
    rng = np.random.default_rng(11)
    users, labels, skill = population(50, rng)
    scores = scores_of(users, labels, skill, rng)
    one = bootstrap(scores, labels, users, num_replicates=10)["gauc"]
    for other in (
        bootstrap(scores[::-1], labels[::-1], users[::-1], num_replicates=10),
        bootstrap(scores, labels, users, num_replicates=10, seed=1),
        bootstrap(scores, labels, users, num_replicates=11),
    ):
        with pytest.raises(DataError, match="cannot be paired"):
            difference([one], [other["gauc"]])
    with pytest.raises(DataError, match="no runs"):
        interval([])


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
