"""Vectors in a narrower type of numbers, without losing their direction."""

from typing import Any

import numpy as np

from trec_semid.core.arrays import Array


def narrow(vectors: Array, dtype: Any) -> Array:
    """Return finite vectors (n, D) in another float type.

    A vector that the type cannot hold, or could only hold with fewer digits than others, is first
    multiplied by a power of two that takes its largest number into [1/2, 1). Content is compared by
    direction alone, which that does not change; all other vectors are converted as they are.
    """
    if vectors.dtype == dtype:
        return vectors
    with np.errstate(over="ignore", under="ignore"):
        narrowed = vectors.astype(dtype)
    # A wider type holds every vector as it is.
    if np.finfo(dtype).max >= np.finfo(vectors.dtype).max:
        return narrowed
    largest = np.abs(vectors).max(axis=1, initial=0)
    # Below the smallest normal number (`tiny`) digits are lost one by one, and the direction with them.
    outside = (largest > 0) & (largest < 2 * np.finfo(dtype).tiny) | ~np.isfinite(narrowed).all(axis=1)
    if outside.any():
        _, exponents = np.frexp(largest[outside])
        narrowed[outside] = np.ldexp(vectors[outside], -exponents[:, None]).astype(dtype)
    return narrowed
