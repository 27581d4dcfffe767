"""How many directions vectors use.

Legend: N vectors, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trec_semid.core.errors import DataError


def effective_rank(gram: Tensor) -> float:
    """Return exp(-sum_i p_i log p_i), p_i = s_i / sum s, over the singular values s of vectors V (N, D).

    Between 1, of vectors on one line, and D, of vectors that use all directions alike. Source: Roy and
    Vetterli, "The effective rank: a measure of effective dimensionality", 2007; AsymRec (2026) shows by it
    that states collapse where a continuous target is learnt.

    Args:
        gram: (D, D) V^T V, of which s_i^2 are the eigenvalues; sums over ranks add up to it.

    Raises:
        DataError: all vectors are zero, or one is no number.
    """
    # Of float64, because squares of small singular values lie far below those of large ones.
    squares = torch.linalg.eigvalsh(gram.double())
    values = squares.clamp(min=0).sqrt()
    if not bool(values.sum() > 0):
        raise DataError("vectors have no direction", field="states", remedy="Lower the learning rate")
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def gram_of(vectors: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """Return (D, D) V^T V in float64 of the vectors (N, D) of all processes.

    Args:
        vectors: of this process.
        total: sums one tensor over processes.
    """
    own = vectors.double()
    return total(own.T @ own)
