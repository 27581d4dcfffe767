"""k-means over faiss: the same centroids for the same points and seed."""

from typing import NamedTuple

import faiss
import numpy as np

from trec_semid.core.arrays import Float32s, Ints
from trec_semid.core.errors import DataError


class Clusters(NamedTuple):
    """Centroids, and the cluster of each vector."""

    centroids: Float32s
    """(K, D); unit length where the clustering was spherical."""
    codes: Ints
    """(N,): the nearest centroid of each point."""


def fit_kmeans(
    points: Float32s,
    num_clusters: int,
    *,
    seed: int,
    iterations: int = 20,
    spherical: bool = False,
    start: Float32s | None = None,
) -> Clusters:
    """Cluster points by squared distance, or by cosine when spherical.

    Empty clusters are refilled by splitting large ones. Threads are faiss's own (OMP_NUM_THREADS).

    Args:
        points: (N, D) float32.
        num_clusters: K, at most N.
        seed: picks the first centroids.
        iterations: Lloyd steps.
        spherical: centroids stay at unit length and are compared by inner product.
        start: (K, D) centroids to go on from, instead of K of the points.

    Raises:
        DataError: fewer points than clusters.
    """
    if len(points) < num_clusters:
        remedy = "Lower the codebook size or bring more items"
        raise DataError(f"{num_clusters} clusters need as many items", value=len(points), remedy=remedy)
    points = np.ascontiguousarray(points, dtype=np.float32)
    if spherical:
        points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    kmeans = faiss.Kmeans(
        points.shape[1],
        num_clusters,
        niter=iterations,
        seed=seed % 2**31,
        spherical=spherical,
        min_points_per_centroid=1,
        # So high that faiss takes all points: by default it draws 256 for each centroid.
        max_points_per_centroid=max(1, -(-len(points) // num_clusters)),
    )
    kmeans.train(points, init_centroids=start)
    _, nearest = kmeans.index.search(points, 1)
    return Clusters(np.asarray(kmeans.centroids, dtype=np.float32), nearest[:, 0])
