"""How much of the content a linear model reads out of the codes of items that it was not fitted on.

Legend: n items, R positions, K codes, D width, F features.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array

from trec_semid.core.arrays import AnyInts, Float32s
from trec_semid.core.seeds import numpy_generator

MOST_FEATURES = 8192
"""Codes of all positions together, beyond which the normal equations are too large to be worth it."""
_HELD_OUT = 0.2


class Readout(NamedTuple):
    """Sums over the items that were held out, dimension by dimension."""

    errors: Float32s
    """(D,): squared errors of what was read out."""
    squares: Float32s
    """(D,): squares of the content itself, which is centred: the errors of knowing nothing."""


def read_out(
    codes: AnyInts, sizes: tuple[int, ...], content: Float32s, *, seed: int, ridge: float = 1.0
) -> Readout | None:
    """Regress content on codes: W = (X^T X + ridge I)^-1 X^T Y, X the one-hot codes; None of too many codes.

    A fifth of the items is held out, drawn at random. The ridge counts as so many items of each code that
    are average.

    Args:
        codes: (n, R); 'missing' (sizes[r]) is a code like any other.
        sizes: K of each position.
        content: (n, D), centred.
        seed: draws the items that are held out.
        ridge: above 0.
    """
    widths = [size + 1 for size in sizes]
    if sum(widths) > MOST_FEATURES or len(codes) < 2:
        return None
    order = numpy_generator(seed, "held out").permutation(len(codes))
    held, fitted = np.split(order, [max(1, round(_HELD_OUT * len(order)))])
    starts = np.cumsum([0, *widths[:-1]])
    num_items, num_codes = codes.shape
    ends = np.arange(0, codes.size + 1, num_codes)
    columns = (codes.astype(np.int64) + starts).ravel()
    x = csr_array((np.ones(codes.size, np.float32), columns, ends), shape=(num_items, sum(widths)))
    of_fitted, known = x[fitted], content[fitted]
    normal = torch.from_numpy((of_fitted.T @ of_fitted).toarray())
    normal.diagonal().add_(ridge)
    weights = torch.cholesky_solve(torch.from_numpy(of_fitted.T @ known), torch.linalg.cholesky(normal))
    missed = content[held] - x[held] @ weights.numpy()
    return Readout(np.square(missed).sum(0), np.square(content[held]).sum(0))
