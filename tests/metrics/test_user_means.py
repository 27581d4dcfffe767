import numpy as np
import pytest

from trec_semid.core.errors import DataError, ShapeError
from trec_semid.metrics.intervals import difference, draw_users, interval
from trec_semid.metrics.paired import paired_difference
from trec_semid.metrics.user_means import bootstrap_user_means


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


def test_draws_where_no_user_has_a_value_are_undefined_and_intervals_pass_over_them():
    values = np.array([0.5, np.nan, np.nan])
    found = bootstrap_user_means({"m": values}, np.arange(3), np.arange(3))["m"]
    drawn = np.concatenate(list(draw_users(3, 1000, 0)))[:, 0] > 0
    np.testing.assert_array_equal(~np.isnan(found.draws), drawn)
    assert interval([found]).low == interval([found]).high == 0.5


def test_metrics_that_no_user_defines_are_left_out_and_one_user_says_nothing():
    values = {"some": np.array([1.0, np.nan]), "none": np.full(2, np.nan)}
    assert list(bootstrap_user_means(values, [0, 1], [5, 6])) == ["some"]
    assert bootstrap_user_means({"m": [1.0]}, [0], [5]) == {}


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
    for found in (difference([first], [second]), paired_difference([first], [second])):
        assert found.is_distinguishable
        assert found.low < 0.01 < found.high
    assert interval([first]).low < interval([second]).value  # apart they overlap
    other = bootstrap_user_means({"m": base}, users, items + 1)["m"]
    with pytest.raises(DataError, match="cannot be paired"):
        difference([first], [other])


def test_metrics_must_be_over_the_same_users():
    with pytest.raises(ShapeError, match="different users"):
        bootstrap_user_means({"a": np.ones(3), "b": np.ones(4)}, np.arange(3), np.arange(3))
