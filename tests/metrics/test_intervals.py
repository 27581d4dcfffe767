import numpy as np
import pytest
from scipy import stats

from tests.metrics.made_up_users import population, scores_of
from trec_semid.core.errors import DataError
from trec_semid.metrics.bootstrap import USER_METRICS, Replicates, bootstrap, bootstrap_user_means, draw_users
from trec_semid.metrics.gauc import gauc
from trec_semid.metrics.intervals import (
    difference_of_other_seeds,
    difference_of_paired_seeds,
    interval,
    paired_t_test,
)


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
    return difference_of_other_seeds(*arms)


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
    assert difference_of_other_seeds([one], [other]).standard_error < 0.2 * interval([one]).standard_error


def test_normal_draws_give_smallest_detectable_difference_of_2_8_standard_errors():
    rng = np.random.default_rng(9)
    first, second = (Replicates(v, v + rng.normal(0, 0.01, 200_000), 100, "same") for v in (0.7, 0.7))
    found = difference_of_other_seeds([first], [second])
    assert found.smallest_detectable == pytest.approx((1.96 + 0.8416) * found.standard_error, rel=0.01)


def test_seed_variation_widens_an_interval_as_student_says():
    draws = np.full(200_000, 0.0)
    seeds = [Replicates(value, draws + value, 100, "same") for value in (0.69, 0.70, 0.71)]
    found = interval(seeds)
    assert found.value == pytest.approx(0.70)
    assert found.standard_error == pytest.approx(0.01 / np.sqrt(3))
    assert found.high - found.value == pytest.approx(4.303 * 0.01 / np.sqrt(3), rel=0.02)  # t, 2 degrees
    paired = difference_of_other_seeds(seeds, seeds)
    assert paired.high == pytest.approx(2.776 * 0.01 * np.sqrt(2 / 3), rel=0.02)  # t, 4 degrees


def test_a_run_compared_with_itself_does_not_differ():
    rng = np.random.default_rng(10)
    users, labels, skill = population(50, rng)
    run = bootstrap(scores_of(users, labels, skill, rng), labels, users, num_replicates=100)
    for name in USER_METRICS:
        found = difference_of_other_seeds([run[name]], [run[name]])
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
            difference_of_other_seeds([one], [other["gauc"]])
    with pytest.raises(DataError, match="no runs"):
        interval([])


def test_draws_where_no_user_has_a_value_are_undefined_and_intervals_pass_over_them():
    values = np.array([0.5, np.nan, np.nan])
    found = bootstrap_user_means({"m": values}, np.arange(3), np.arange(3))["m"]
    drawn = np.concatenate(list(draw_users(3, 1000, 0)))[:, 0] > 0
    np.testing.assert_array_equal(~np.isnan(found.draws), drawn)
    assert interval([found]).low == interval([found]).high == 0.5


def test_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        found = bootstrap_user_means(
            {"m": random.random(300) < 0.3}, np.arange(300), np.arange(300), num_replicates=200
        )
        found = interval([found["m"]])
        covered += found.low <= 0.3 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_runs_over_the_same_users_and_targets_are_paired():
    random = np.random.default_rng(2)
    base = random.random(2000)
    users, items = np.arange(2000), random.integers(0, 50, 2000)
    first = bootstrap_user_means({"m": base + 0.01 + random.normal(0, 0.02, 2000)}, users, items)["m"]
    second = bootstrap_user_means({"m": base}, users, items)["m"]
    for compare in (difference_of_other_seeds, difference_of_paired_seeds):
        found = compare([first], [second])
        assert found.is_distinguishable
        assert found.low < 0.01 < found.high
    assert interval([first]).low < interval([second]).value  # apart they overlap
    other = bootstrap_user_means({"m": base}, users, items + 1)["m"]
    with pytest.raises(DataError, match="cannot be paired"):
        difference_of_other_seeds([first], [other])


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
def test_test_over_seeds_is_scipys_paired_t_test(num_seeds: int):
    generator = np.random.default_rng(num_seeds)
    second = generator.normal(0.7, 0.05, num_seeds)
    first = second + generator.normal(0.01, 0.008, num_seeds)
    found, oracle = paired_t_test(first, second), stats.ttest_rel(first, second)
    assert found.p_value == pytest.approx(oracle.pvalue, rel=1e-6)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval()), rel=1e-6)


def test_smallest_detectable_difference_is_found_four_times_of_five_or_more():
    generator = np.random.default_rng(0)
    found = detected = 0
    smallest = []
    for _ in range(150):
        noise = generator.normal(0, 0.01, 5)
        smallest.append(paired_t_test(noise, np.zeros(5)).smallest_detectable)
    for _ in range(800):
        sample = generator.normal(np.median(smallest), 0.01, 5)
        detected += stats.ttest_1samp(sample, 0).pvalue < 0.05
        found += 1
    assert 0.7 < detected / found < 0.9


def test_equal_and_constant_differences_need_no_spread():
    same = paired_t_test([0.5, 0.6], [0.5, 0.6])
    assert (same.value, same.p_value, same.is_distinguishable) == (0, 1, False)
    assert paired_t_test([1.0, 2.0, 3.0], [0.5, 1.5, 2.5]).is_distinguishable
    with pytest.raises(DataError, match="two seeds"):
        paired_t_test([1.0], [0.5])


def sample(seed: int, num_users: int = 120, gain: float = 0.0, own: float = 0.0) -> tuple:
    """Scores of two arms that share what the seed decides; `own` is what each seed does to the gain."""
    data = np.random.default_rng(1)
    users = np.repeat(np.arange(num_users), 12)
    labels = data.integers(0, 2, len(users))
    hard = data.normal(size=len(users))
    noise = np.random.default_rng(100 + seed).normal(size=len(users))
    lift = gain + own * np.random.default_rng(200 + seed).normal()
    logits = [0.5 * labels + hard + 0.8 * noise + step * labels for step in (lift, 0.0)]
    return [1 / (1 + np.exp(-each)) for each in logits], labels, users


def user_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    above = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def test_draws_of_users_give_the_interval_of_resampled_mean_differences():
    """Oracle: with 12 rows each, GAUC is the mean of per-user AUC; resample their differences directly."""
    drawn, differences = ([], []), []
    for seed in range(3):
        scores, labels, users = sample(seed, gain=0.3)
        for arm, own in zip(drawn, scores, strict=True):
            arm.append(bootstrap(own, labels, users, metrics=["gauc"], num_replicates=2000)["gauc"])
        blocks = [slice(12 * user, 12 * user + 12) for user in range(120)]
        both = [b for b in blocks if 0 < labels[b].sum() < 12]
        differences.append(
            [user_auc(scores[0][b], labels[b]) - user_auc(scores[1][b], labels[b]) for b in both]
        )
    table = np.array(differences)
    found = difference_of_paired_seeds(*drawn)
    assert found.value == pytest.approx(table.mean(), abs=1e-9)
    generator = np.random.default_rng(5)
    users = generator.integers(0, table.shape[1], (4000, table.shape[1]))
    between = table.mean(1).std(ddof=1) / np.sqrt(3)
    draws = table.mean(0)[users].mean(1) + between * generator.standard_t(2, 4000)
    low, high = np.quantile(draws, (0.025, 0.975))
    width = high - low
    assert found.low == pytest.approx(low, abs=0.12 * width)
    assert found.high == pytest.approx(high, abs=0.12 * width)


def test_arms_without_a_difference_are_rarely_told_apart_and_shared_noise_of_seeds_does_not_matter():
    told = 0
    for trial in range(40):
        arms = ([], [])
        for seed in range(3):
            scores, labels, users = sample(10 * trial + seed, num_users=60, own=0.15)
            for arm, own in zip(arms, scores, strict=True):
                arm.append(bootstrap(own, labels, users, metrics=["gauc"], num_replicates=200)["gauc"])
        told += difference_of_paired_seeds(*arms).is_distinguishable
    assert told <= 5


def test_runs_over_other_users_cannot_be_paired():
    scores, labels, users = sample(0)
    first = bootstrap(scores[0], labels, users, metrics=["auc"], num_replicates=50)["auc"]
    other = bootstrap(scores[0], labels, users + 1, metrics=["auc"], num_replicates=50)["auc"]
    with pytest.raises(DataError, match="cannot be paired"):
        difference_of_paired_seeds([first], [other])
