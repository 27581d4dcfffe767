"""What two positions of a semantic ID say together, and how much of it each says alone.

Legend: N items, R positions, K codes.
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np

from trec_semid.core.arrays import AnyInts, Ints

_SHUFFLES = 3


class CodePair(NamedTuple):
    """Two positions, over the items that have a code at both."""

    left: int
    right: int
    joint_entropy: float
    """H(a, b) [nats]; at most the logarithm of the number of items."""
    shared: float
    """What part of the one position the other one tells, beyond chance: 0 where they are independent, 1 where
    one follows from the other."""


def code_pairs(codes: AnyInts, sizes: tuple[int, ...], *, seed: int) -> list[CodePair]:
    """Compare every two positions.

    shared = (I(a, b) - I_0) / (min(H(a), H(b)) - I_0), with I_0 what is left of I where the codes of one
    position are dealt to the items anew, mean of three times: a few items for each pair of codes let
    independent positions look alike. Source: Information Theoretic Measures for Clusterings Comparison,
    2010 (adjusted mutual information), its expectation by draws.

    Args:
        codes: (N, R); sizes[r] is the 'missing' code.
        sizes: K of each position.
        seed: of the draws.
    """
    random, pairs = np.random.default_rng(seed), list[CodePair]()
    for left, right in combinations(range(len(sizes)), 2):
        both = (codes[:, left] < sizes[left]) & (codes[:, right] < sizes[right])
        a, b = codes[both, left].astype(np.int64), codes[both, right].astype(np.int64)
        joint = _entropy(a * sizes[right] + b)
        by_chance = np.mean([_entropy(random.permutation(a) * sizes[right] + b) for _ in range(_SHUFFLES)])
        of_a, of_b = _entropy(a), _entropy(b)
        most = min(of_a, of_b) - (of_a + of_b - by_chance)
        # Where a deal of the codes says as much as could be said, nothing can be told.
        shared = float((by_chance - joint) / most) if most > 1e-9 else 0.0
        pairs.append(CodePair(left, right, joint, shared))
    return pairs


def _entropy(values: Ints) -> float:
    counts = np.unique(values, return_counts=True)[1]
    shares = counts / max(1, len(values))
    return float(-(shares * np.log(shares)).sum()) + 0.0
