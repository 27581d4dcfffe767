import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from trec_semid.core.errors import DataError
from trec_semid.layers.kmeans import balanced_codes, fit_balanced_kmeans, fit_kmeans


def blobs(num_clusters: int = 5, each: int = 40, dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_clusters), each)
    points = 5 * rng.normal(size=(num_clusters, dim))[labels] + 0.05 * rng.normal(size=(len(labels), dim))
    return points.astype(np.float32), labels


@pytest.mark.parametrize("spherical", [False, True])
def test_no_cluster_mixes_planted_groups(spherical):
    points, labels = blobs()
    codes = fit_kmeans(points, 20, seed=3, spherical=spherical).codes
    assert len(set(codes.tolist())) == 20
    assert len(set(zip(labels.tolist(), codes.tolist(), strict=True))) == 20


def test_every_point_is_given_its_nearest_centroid():
    points, _ = blobs()
    clusters = fit_kmeans(points, 7, seed=3)
    distances = ((points[:, None] - clusters.centroids[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(clusters.codes, distances.argmin(1))


def test_spherical_centroids_have_unit_length_and_ignore_the_length_of_points():
    points, _ = blobs()
    clusters = fit_kmeans(points, 5, seed=3, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(clusters.centroids, axis=1), 1, rtol=1e-5)
    stretched = points * np.linspace(0.5, 4, len(points), dtype=np.float32)[:, None]
    np.testing.assert_array_equal(fit_kmeans(stretched, 5, seed=3, spherical=True).codes, clusters.codes)


def test_seed_decides_the_result():
    points = np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32)
    first, again, other = (fit_kmeans(points, 20, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.centroids, again.centroids)
    assert not np.array_equal(first.centroids, other.centroids)


def test_more_clusters_than_points_are_refused():
    with pytest.raises(DataError, match=r"5 clusters need as many items \(got 3\)"):
        fit_kmeans(np.ones((3, 2), np.float32), 5, seed=0)


def best_total(scores: np.ndarray, capacity: int) -> float:
    """The largest sum of scores when each cluster has so many seats, by assigning points to single seats."""
    seats = np.repeat(scores, capacity, axis=1)
    return float(seats[linear_sum_assignment(seats, maximize=True)].sum())


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 25), st.integers(1, 6), st.integers(0, 3), st.booleans())
def test_bounded_clusters_are_as_good_as_a_matching_allows(seed, num_points, num_clusters, more, coarse):
    scores = np.random.default_rng(seed).uniform(-1, 1, (num_points, num_clusters)).astype(np.float32)
    if coarse:  # ties
        scores = np.round(scores)
    capacity = -(-num_points // num_clusters) + more
    codes = balanced_codes(scores, capacity, tolerance=1e-3)
    assert np.bincount(codes, minlength=num_clusters).max() <= capacity
    total = scores[np.arange(num_points), codes].sum()
    assert total >= best_total(scores, capacity) - 1e-3 * num_points - 1e-4


def test_room_for_everybody_leaves_everybody_at_its_best():
    scores = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    np.testing.assert_array_equal(balanced_codes(scores, 50), scores.argmax(1))


@pytest.mark.parametrize(("slack", "largest"), [(0.0, 20), (0.1, 22), (0.5, 30)])
def test_no_cluster_is_larger_than_slack_allows(slack, largest):
    rng = np.random.default_rng(0)
    # Half of the points lie in one direction: k-means alone makes a large cluster of them.
    points = rng.normal(size=(200, 6)) + np.where(np.arange(200) < 100, 20, 0)[:, None] * np.eye(6)[0]
    points = points.astype(np.float32)
    free, bounded = (fit_balanced_kmeans(points, 10, seed=1, slack=each) for each in (1e9, slack))
    assert np.bincount(free.codes).max() > 30
    assert np.bincount(bounded.codes, minlength=10).max() <= largest
    np.testing.assert_allclose(np.linalg.norm(bounded.centroids, axis=1), 1, rtol=1e-5)
    directions = points / np.linalg.norm(points, axis=1, keepdims=True)
    total = best_total(directions @ bounded.centroids.T, largest)
    own = (directions * bounded.centroids[bounded.codes]).sum()
    assert own == pytest.approx(total, rel=0.02)


def test_without_a_bound_to_keep_clusters_are_those_of_spherical_kmeans():
    points = np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32)
    plain = fit_kmeans(points, 20, seed=5, spherical=True)
    loose = fit_balanced_kmeans(points, 20, seed=5, slack=1e9)
    np.testing.assert_array_equal(loose.centroids, plain.centroids)
    np.testing.assert_array_equal(loose.codes, plain.codes)
