"""The engine of comparison against scipy, Holm's procedure from its definition, and plain resampling."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trec_semid.evaluation.comparison import MIN_USERS, ArmResults, best_arms, compare_with_baseline
from trec_semid.metrics.bootstrap import Replicates, bootstrap_user_means, draw_users

NUM_USERS, NUM_DRAWS = 40, 400
METRIC = "test/ndcg@10"
PerUser = Mapping[int, np.ndarray]
"""Seed to (U,) values of one metric."""


def arm_of(seeds: PerUser, metric: str = METRIC) -> ArmResults:
    """An arm whose predictions give these values of every user."""
    users = np.arange(NUM_USERS)
    draws = {
        seed: {metric: bootstrap_user_means({"m": values}, users, users, num_replicates=NUM_DRAWS)["m"]}
        for seed, values in seeds.items()
    }
    return ArmResults(draws)


def undrawn(values: Sequence[float], metric: str = METRIC) -> ArmResults:
    """An arm without predictions: one value a seed."""
    return ArmResults({}, {seed: {metric: value} for seed, value in enumerate(values)})


def drawn_values(seed: int, mean: float, seeds: Sequence[int] = (0, 1, 2)) -> dict[int, np.ndarray]:
    random = np.random.default_rng(seed)
    return {each: mean + random.normal(0, 0.1, NUM_USERS) for each in seeds}


def holm_by_definition(p_values: Sequence[float]) -> list[float]:
    """Closed testing by Bonferroni: the largest p of every set of hypotheses that this one is in."""
    indices = range(len(p_values))
    sets = [
        chosen for size in range(1, len(p_values) + 1) for chosen in itertools.combinations(indices, size)
    ]
    return [
        max(min(1.0, len(s) * min(p_values[each] for each in s)) for s in sets if index in s)
        for index in indices
    ]


def test_paired_seeds_and_users_are_resampled_as_a_plain_loop_does():
    first, second = drawn_values(1, 0.55), drawn_values(2, 0.5)
    found = compare_with_baseline({"a": arm_of(first), "b": arm_of(second)}, "b", [METRIC])["a"][METRIC]
    deltas = np.array([first[seed] - second[seed] for seed in first])
    assert found.difference == pytest.approx(deltas.mean())
    assert (found.paired_over, found.seeds) == ("seeds and users", 3)
    times = np.concatenate(list(draw_users(NUM_USERS, NUM_DRAWS, 0)))
    means = [np.average(deltas.mean(0), weights=often) for often in times]
    spread = deltas.mean(1).std(ddof=1) / np.sqrt(3)
    noise = np.random.default_rng(9).standard_t(2, (200, NUM_DRAWS)) * spread
    low, high = np.quantile(np.array(means) + noise, (0.025, 0.975))
    width = high - low
    assert found.low == pytest.approx(low, abs=0.15 * width)
    assert found.high == pytest.approx(high, abs=0.15 * width)


def test_arms_with_other_seeds_are_compared_over_users_with_seeds_as_independent():
    first, second = drawn_values(1, 0.7), drawn_values(2, 0.5, seeds=(7, 8))
    found = compare_with_baseline({"a": arm_of(first), "b": arm_of(second)}, "b", [METRIC])["a"][METRIC]
    assert (found.paired_over, found.seeds, found.verdict) == ("users", 0, "higher")
    own, other = (np.array([values.mean() for values in arm.values()]) for arm in (first, second))
    assert found.difference == pytest.approx(own.mean() - other.mean())


def test_one_common_seed_of_several_does_not_hide_how_much_seeds_vary():
    first = {seed: values + 0.2 * seed for seed, values in drawn_values(1, 0.5).items()}
    base = {"b": arm_of(drawn_values(2, 0.5, seeds=(0,)))}
    alone = compare_with_baseline(base | {"a": arm_of({0: first[0]})}, "b", [METRIC])["a"][METRIC]
    three = compare_with_baseline(base | {"a": arm_of(first)}, "b", [METRIC])["a"][METRIC]
    assert three.high - three.low > 3 * (alone.high - alone.low)


@pytest.mark.parametrize("num_seeds", [2, 5])
def test_without_predictions_it_is_scipys_paired_t_test(num_seeds: int):
    random = np.random.default_rng(num_seeds)
    first, second = random.normal(0.71, 0.02, num_seeds), random.normal(0.7, 0.02, num_seeds)
    arms = {"a": undrawn(first.tolist()), "b": undrawn(second.tolist())}
    found, oracle = compare_with_baseline(arms, "b", [METRIC])["a"][METRIC], stats.ttest_rel(first, second)
    assert found.paired_over == "seeds"
    assert found.p == found.p_holm == pytest.approx(oracle.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval()))
    assert compare_with_baseline({"a": undrawn([0.7]), "b": undrawn([0.6])}, "b", [METRIC]) == {}


def test_arms_with_the_same_runs_never_differ():
    arm = arm_of(drawn_values(3, 0.5))
    found = compare_with_baseline({"a": arm, "b": arm}, "b", [METRIC])["a"][METRIC]
    assert (found.difference, found.low, found.high, found.p, found.p_holm) == (0, 0, 0, 1, 1)
    assert found.verdict == "not distinguishable"
    assert best_arms({"a": arm, "b": arm}, "b", {METRIC: "high"}, {"a": {METRIC: found}}) == {}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.3, 0.7), min_size=2, max_size=5), st.randoms())
def test_the_order_of_arms_and_metrics_changes_nothing_and_p_is_holms(means: list[float], order):
    metrics = [METRIC, "test/recall@10", "test/ndcg@10/popularity_head", "test/ndcg@10/popularity_tail"]
    arms = {"base": results_of(drawn_values(0, 0.5), metrics)}
    arms |= {f"arm-{n}": results_of(drawn_values(n + 1, mean), metrics) for n, mean in enumerate(means)}
    found = compare_with_baseline(arms, "base", metrics)
    shuffled, others = list(arms.items()), list(metrics)
    order.shuffle(shuffled)
    order.shuffle(others)
    assert compare_with_baseline(dict(shuffled), "base", others) == found
    slices = [metric for metric in metrics if "/popularity" in metric]
    for family in ([METRIC], ["test/recall@10"], slices):
        together = [found[arm][metric] for metric in family for arm in found]
        assert [each.p_holm for each in together] == pytest.approx(
            holm_by_definition([each.p for each in together])
        )
        assert all(each.p_holm < 0.05 for each in together if each.verdict != "not distinguishable")


def results_of(seeds: PerUser, metrics: Sequence[str]) -> ArmResults:
    """The same values under several names."""
    arm = arm_of(seeds)
    return ArmResults({seed: dict.fromkeys(metrics, draws[METRIC]) for seed, draws in arm.draws.items()})


def test_a_verdict_holds_beside_the_others_or_not_at_all():
    """One arm is a little better: told apart alone, not among twenty that are not."""
    random = np.random.default_rng(0)
    base = random.normal(0.5, 0.1, NUM_USERS)
    slight = arm_of({0: base + random.normal(0.035, 0.1, NUM_USERS)})
    crowd = {f"same-{n}": arm_of({0: base + random.normal(0, 0.1, NUM_USERS)}) for n in range(20)}
    arms = {"base": arm_of({0: base}), "slight": slight}
    alone = compare_with_baseline(arms, "base", [METRIC])["slight"][METRIC]
    beside = compare_with_baseline(arms | crowd, "base", [METRIC])["slight"][METRIC]
    assert alone.verdict == "higher"
    assert (beside.p, beside.smallest_detectable) == (alone.p, alone.smallest_detectable)
    assert beside.p_holm == pytest.approx(min(1, 21 * beside.p), rel=0.2)
    assert beside.verdict == "not distinguishable"


def test_few_users_compare_nothing():
    draws = np.random.default_rng(0).normal(0.5, 0.001, NUM_DRAWS)
    few, enough = (
        {
            "a": ArmResults({0: {METRIC: Replicates(0.9, draws + 0.4, users, "same")}}),
            "b": ArmResults({0: {METRIC: Replicates(0.5, draws, users, "same")}}),
        }
        for users in (MIN_USERS - 1, MIN_USERS)
    )
    assert compare_with_baseline(few, "b", [METRIC]) == {}
    assert compare_with_baseline(enough, "b", [METRIC])["a"][METRIC].verdict == "higher"
    assert best_arms(few, "b", {METRIC: "high"}, {}) == {}


def test_runs_over_other_users_are_not_compared(caplog: pytest.LogCaptureFixture):
    first, second = arm_of(drawn_values(1, 0.7)), arm_of(drawn_values(2, 0.5))
    other = ArmResults(
        {seed: {METRIC: own[METRIC]._replace(sample="other")} for seed, own in second.draws.items()}
    )
    assert compare_with_baseline({"a": first, "b": other}, "b", [METRIC]) == {}
    assert f"a and b: not compared in {METRIC}" in caplog.text


@pytest.mark.parametrize(("goal", "best"), [("high", "much"), ("low", "little")])
def test_the_best_arm_is_better_than_each_other_one_after_correction(goal, best):
    arms = {
        name: arm_of(drawn_values(number, mean))
        for number, (name, mean) in enumerate({"base": 0.5, "little": 0.2, "much": 0.9}.items())
    }
    comparisons = compare_with_baseline(arms, "base", [METRIC])
    assert best_arms(arms, "base", {METRIC: goal}, comparisons) == {METRIC: best}
    twins = arms | {"twin": arms[best]}
    comparisons = compare_with_baseline(twins, "base", [METRIC])
    assert best_arms(twins, "base", {METRIC: goal}, comparisons) == {}


def test_calibration_is_best_near_one():
    arms = {
        name: arm_of(drawn_values(number, mean))
        for number, (name, mean) in enumerate({"base": 1.5, "near": 0.98, "under": 0.6}.items())
    }
    assert best_arms(arms, "base", {METRIC: "one"}, {}) == {METRIC: "near"}
