"""Optimised product quantisation on arrays.

Legend: N points, D width, R subspaces of S dimensions, K codes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trec_semid.core.arrays import Float32s
from trec_semid.core.seeds import derive_seed
from trec_semid.layers.kmeans import fit_kmeans

_FIRST_STEPS, _STEPS, _LAST_STEPS = 10, 2, 20
"""Lloyd steps of the first turn, of those between, and of the last one."""


class Product(NamedTuple):
    """A product quantiser: y = x Q, c_r = argmin_j ||y_r - C_r,j||^2, x_hat = [C_1,c .. C_R,c] Q^T."""

    rotation: Float32s
    """(D, R S) Q: orthonormal rows or columns, whichever are fewer."""
    codebooks: Float32s
    """(R, K, S)."""
    residual: float
    """Mean over points of ||y - y_hat||^2."""


def fit_product(
    points: Float32s, num_subspaces: int, num_codes: int, *, turns: int, seed: int, max_dim: int
) -> Iterator[Product]:
    """Let codebooks and rotation take turns, and yield after every turn.

    k-means in each subspace, then Q = U V^T from the singular value decomposition points^T y_hat = U S V^T.
    It starts from principal directions, dealt to the subspaces so that the products of their
    variances are alike. Source: Optimized Product Quantization for Approximate Nearest Neighbor Search,
    2013, section 3.1 and 3.2.

    Args:
        points: (N, D) centred, at least K of them.
        num_subspaces: R; where it does not divide the width, some dimensions stay empty.
        num_codes: K, any number.
        turns: at least 1.
        seed: of the clustering.
        max_dim: principal directions that are coded at most; the others are taken for zero.

    Raises:
        DataError: fewer points than codes.
    """
    principal, variances = principal_directions(points, max_dim)
    width = -(-len(variances) // num_subspaces)
    dealt = deal_directions(variances, num_subspaces, width)
    inner = np.zeros((len(points), num_subspaces * width), np.float32)
    inner[:, : len(variances)] = points @ principal
    # At first a mere permutation: it deals the principal directions to the subspaces.
    rotation = np.eye(num_subspaces * width, dtype=np.float32)[:, dealt]
    codebooks: list[Float32s] | None = None
    for turn in range(turns):
        rotated = inner @ rotation
        steps = _LAST_STEPS if turn == turns - 1 else _STEPS if turn else _FIRST_STEPS
        clusters = [
            fit_kmeans(
                rotated[:, r * width : (r + 1) * width],
                num_codes,
                seed=derive_seed(seed, "subspace", r),
                iterations=steps,
                start=None if codebooks is None else codebooks[r],
            )
            for r in range(num_subspaces)
        ]
        codebooks = [cluster.centroids for cluster in clusters]
        rebuilt = np.concatenate([cluster.centroids[cluster.codes] for cluster in clusters], axis=1)
        residual = float(np.square(rotated - rebuilt).sum(1, dtype=np.float64).mean())
        yield Product(principal @ rotation[: len(variances)], np.stack(codebooks), residual)
        # After the yield: what was yielded is a rotation with the codebooks that were fitted under it.
        # The next one is the orthogonal matrix that brings the points nearest to what their codes say.
        left, _, right = np.linalg.svd(inner.T @ rebuilt)
        rotation = left @ right


def principal_directions(points: Float32s, max_dim: int) -> tuple[Float32s, Float32s]:
    """Return directions (D, P) by falling variance, and the variances (P,)."""
    covariance = (points.T @ points).astype(np.float64) / len(points)
    variances, directions = np.linalg.eigh(covariance)
    largest = slice(None, -max_dim - 1, -1)
    return directions[:, largest].astype(np.float32), variances[largest].clip(min=0).astype(np.float32)


def deal_directions(variances: Float32s, num_subspaces: int, width: int) -> list[int]:
    """Return an order of (P,) directions: the next one goes to the subspace of the smallest product."""
    # The floors: a direction without variance would have a logarithm of -inf and decide every sum.
    logs = np.log(np.maximum(variances / max(variances[0], 1e-30), 1e-9))
    logs -= logs.min()  # every direction adds to its product
    hands: list[list[int]] = [[] for _ in range(num_subspaces)]
    sums = np.zeros(num_subspaces)
    for direction, log in enumerate(np.append(logs, np.zeros(num_subspaces * width - len(logs)))):
        room = np.array([np.inf if len(hand) == width else 0.0 for hand in hands])
        chosen = int(np.argmin(sums + room))
        hands[chosen].append(direction)
        sums[chosen] += log
    return [direction for hand in hands for direction in hand]
