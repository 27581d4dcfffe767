import numpy as np
import pytest

from trec_semid.core.errors import DataError
from trec_semid.layers.kmeans import fit_kmeans


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
