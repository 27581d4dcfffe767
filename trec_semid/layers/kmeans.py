"""k-means over faiss, and clusters of bounded size: the same centroids for the same points and seed.

Legend: N points, D width, K clusters.
"""

import math
from typing import NamedTuple

import faiss
import numpy as np
import torch

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


def fit_balanced_kmeans(
    points: Float32s,
    num_clusters: int,
    *,
    seed: int,
    slack: float,
    iterations: int = 20,
    balanced_iterations: int = 10,
) -> Clusters:
    """Cluster points by cosine so that no cluster holds more than (1 + slack) N / K of them, rounded up.

    Spherical k-means; then, unless its clusters are that small already, points and capacities are matched
    anew (`balanced_codes`) and centroids become the mean directions of their points, in turns. Memory beside
    the points: N K scores.

    Args:
        points: (N, D) float32.
        num_clusters: K, at most N.
        seed: picks the first centroids.
        slack: 0 makes clusters equal, a large one leaves them as they are.
        iterations: Lloyd steps before sizes are bounded.
        balanced_iterations: turns after that, at most.

    Returns:
        Centroids of unit length, and the cluster of each point, which is not always the nearest one.

    Raises:
        DataError: fewer points than clusters.
    """
    clusters = fit_kmeans(points, num_clusters, seed=seed, iterations=iterations, spherical=True)
    # Rounding would make one too many of an exact product: (1 + .1) 100 / 10 is 11.000000000000002.
    capacity = (
        math.ceil(round((1 + slack) * len(points) / num_clusters, 6)) if slack < num_clusters else len(points)
    )
    if np.bincount(clusters.codes).max() <= capacity:
        return clusters
    directions = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    centroids, codes = clusters.centroids, np.full(len(points), -1)
    for _ in range(balanced_iterations):
        before, codes = codes, balanced_codes(directions @ centroids.T, capacity)
        if np.array_equal(before, codes):
            break
        centroids = _mean_directions(directions, codes, centroids)
    return Clusters(centroids, codes)


def balanced_codes(scores: Float32s, capacity: int, *, tolerance: float = 0.01) -> Ints:
    """Return (N,) the cluster of each point, the sum of scores as large as clusters of bounded size allow.

    An auction: every point without a place bids for the cluster that is worth most to it, its score less the
    price, and offers as much above the price as this cluster is better than the next best, and `tolerance`
    more. A cluster holds its highest bids and turns the others away; once it is full its lowest bid is its
    price. The sum falls short of the best one by N times the tolerance at most.
    Source: Bertsekas and Castanon, "The auction algorithm for the transportation problem", 1989.

    Args:
        scores: (N, K), K at least 2 unless one cluster holds all.
        capacity: points that a cluster holds at most; K times that at least N.
        tolerance: in the unit of scores.
    """
    num_points, num_clusters = scores.shape
    assert capacity * num_clusters >= num_points, "there is room for all points"
    owners, bids = np.full(num_points, -1), np.zeros(num_points, np.float32)
    if num_clusters == 1:
        return np.zeros(num_points, np.int64)
    prices, waiting = np.zeros(num_clusters, np.float32), np.arange(num_points)
    while len(waiting):
        worth = scores[waiting] - prices
        best, at = worth.argmax(1), np.arange(len(waiting))
        most = worth[at, best]
        worth[at, best] = -np.inf
        bids[waiting], owners[waiting] = prices[best] + (most - worth.max(1)) + tolerance, best
        # Only clusters that were bid for change: points of the others stay out of the sort.
        is_bid_for = np.zeros(num_clusters + 1, bool)
        is_bid_for[best] = True
        held = np.flatnonzero(is_bid_for[owners])
        held = held[np.lexsort((-bids[held], owners[held]))]
        place = _place_in_run(owners[held])
        lowest = held[place == capacity - 1]
        prices[owners[lowest]] = bids[lowest]
        waiting = held[place >= capacity]
        owners[waiting] = -1
    return owners


def _place_in_run(ordered: Ints) -> Ints:
    """Return (n,): 0, 1, 2, ... within each run of equal numbers."""
    is_first = np.append(True, ordered[1:] != ordered[:-1])
    return np.arange(len(ordered)) - np.maximum.accumulate(np.where(is_first, np.arange(len(ordered)), 0))


def _mean_directions(directions: Float32s, codes: Ints, centroids: Float32s) -> Float32s:
    """Return (K, D) mean directions of the (N, D) points of each cluster; its (K, D) old one without any."""
    sums = torch.zeros(centroids.shape).index_add_(0, torch.from_numpy(codes), torch.from_numpy(directions))
    lengths = sums.norm(dim=1, keepdim=True).numpy()
    return np.where(lengths > 1e-6, sums.numpy() / np.maximum(lengths, 1e-6), centroids)
