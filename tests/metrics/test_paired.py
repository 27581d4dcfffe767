import numpy as np
import pytest
from scipy import stats

from trec_semid.core.errors import DataError
from trec_semid.metrics.intervals import bootstrap
from trec_semid.metrics.paired import paired_difference, paired_t_test, student_quantile, student_tail


@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 60])
def test_student_distribution_is_scipys(degrees: int):
    for t in (0.0, 0.3, 1.0, 2.8, 12.0):
        assert student_tail(t, degrees) == pytest.approx(stats.t.sf(t, degrees), rel=1e-6)
    for share in (0.5, 0.8, 0.975):
        found = student_quantile(share, degrees)
        assert found == pytest.approx(stats.t.ppf(share, degrees), rel=1e-6, abs=1e-6)


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
    found = paired_difference(*drawn)
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
        told += paired_difference(*arms).is_distinguishable
    assert told <= 5


def test_runs_over_other_users_cannot_be_paired():
    scores, labels, users = sample(0)
    first = bootstrap(scores[0], labels, users, metrics=["auc"], num_replicates=50)["auc"]
    other = bootstrap(scores[0], labels, users + 1, metrics=["auc"], num_replicates=50)["auc"]
    with pytest.raises(DataError, match="cannot be paired"):
        paired_difference([first], [other])
