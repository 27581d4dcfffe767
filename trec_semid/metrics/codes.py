"""How well codes are used and what two of them say, collisions, and whether items that share codes are alike.

Legend: N items, R positions, K codebook size, D width.
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np

from trec_semid.core.arrays import AnyInts, Float32s, Ints
from trec_semid.core.hashing import exact_tuple_keys
from trec_semid.runtime.logs import working

_ANCHORS_A_CHUNK = 256
_SHUFFLES = 3


class CodeUsage(NamedTuple):
    """Use of one codebook by the items that have a code there; items with the 'missing' code stay out."""

    counts: Ints
    """(K,): items of each code."""
    missing: int
    """Items with the reserved 'missing' code."""

    @property
    def used(self) -> int:
        """Codes that at least one item has."""
        return int((self.counts > 0).sum())

    @property
    def utilisation(self) -> float:
        """Share of the codebook that is used (VQGAN-LC: Scaling the Codebook Size of VQGAN, 2024)."""
        return self.used / len(self.counts)

    @property
    def entropy(self) -> float:
        """-sum_k p_k ln p_k [nats]; ln K where all codes are equally frequent, 0 without items."""
        shares = self.counts[self.counts > 0] / max(1, self.counts.sum())
        return float(-(shares * np.log(shares)).sum()) + 0.0

    @property
    def perplexity(self) -> float:
        """exp(entropy): the effective number of codes."""
        return float(np.exp(self.entropy))


class Collisions(NamedTuple):
    """How far whole tuples tell items apart; the 'missing' code counts as a code like any other."""

    unique_tuples: int
    groups: int
    """Tuples that two or more items have."""
    items_in_groups: int
    largest_group: int
    """Items of the most frequent tuple; 1 where all differ."""


class SharedCodes(NamedTuple):
    """Pairs of items that share just so many codes."""

    shared_codes: int
    pairs: int
    mean_cosine: float


class NeighbourAgreement(NamedTuple):
    """Whether likeness of content and sharing of codes go together."""

    k: int
    overlap_of_neighbours: float
    """Mean share of equal codes between an anchor and its k nearest items."""
    overlap_of_pairs: float
    """The same between an anchor and any other item: what chance gives."""
    by_shared_codes: list[SharedCodes]


class CodePair(NamedTuple):
    """Two positions, over the items that have a code at both."""

    left: int
    right: int
    joint_entropy: float
    """H(a, b) [nats]; at most the logarithm of the number of items."""
    shared: float
    """What part of the one position the other one tells, beyond chance: 0 where they are independent, 1 where
    one follows from the other."""


def code_usage(codes: AnyInts, sizes: tuple[int, ...]) -> list[CodeUsage]:
    """Count the codes of every position.

    Args:
        codes: (N, R); sizes[r] is the 'missing' code.
        sizes: K of each position.
    """
    counts = [np.bincount(codes[:, r], minlength=size + 1) for r, size in enumerate(sizes)]
    return [CodeUsage(count[:-1].astype(np.int64), int(count[-1])) for count in counts]


def count_collisions(codes: AnyInts, sizes: tuple[int, ...]) -> Collisions:
    """Group items by their whole tuple, exactly.

    Args:
        codes: (N, R).
        sizes: K of each position.
    """
    _, group_sizes = np.unique(exact_tuple_keys(codes, sizes), return_counts=True)
    shared = group_sizes[group_sizes > 1]
    largest = int(group_sizes.max(initial=0))
    return Collisions(len(group_sizes), len(shared), int(shared.sum()), largest)


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


def neighbour_agreement(
    vectors: Float32s,
    codes: AnyInts,
    sizes: tuple[int, ...],
    *,
    k: int = 10,
    max_anchors: int = 2000,
    seed: int = 0,
) -> NeighbourAgreement:
    """Compare every anchor with all other items: content cosine against the number of equal codes.

    Positions where either item has the 'missing' code are not equal, and leave the share's denominator.
    With more items than `max_anchors`, anchors are a random sample; pass a sample of items where all
    of them would be too many (cost: anchors times items).

    Args:
        vectors: (N, D); rows of zeros (items without content) are left out.
        codes: (N, R).
        sizes: K of each position.
        k: neighbours of an anchor; fewer where there are not so many items.
        max_anchors: bound on the anchors.
        seed: picks the anchors.
    """
    lengths = np.linalg.norm(vectors, axis=1)
    vectors, codes = vectors[lengths > 0] / lengths[lengths > 0, None], codes[lengths > 0]
    num_items, num_positions = codes.shape
    k = min(k, num_items - 1)
    anchors = np.sort(np.random.default_rng(seed).permutation(num_items)[:max_anchors])
    pairs, cosines = np.zeros(num_positions + 1, np.int64), np.zeros(num_positions + 1)
    near = total = 0.0
    with working("compare items", len(anchors)) as work:
        for start in range(0, len(anchors) if k > 0 else 0, _ANCHORS_A_CHUNK):
            chunk = anchors[start : start + _ANCHORS_A_CHUNK]
            others = np.ones((len(chunk), num_items), dtype=bool)
            others[np.arange(len(chunk)), chunk] = False
            cosine = vectors[chunk] @ vectors.T
            shared, comparable = _shared_codes(codes[chunk], codes, sizes)
            overlap = shared / np.maximum(comparable, 1)
            pairs += np.bincount(shared[others], minlength=num_positions + 1)
            cosines += np.bincount(shared[others], weights=cosine[others], minlength=num_positions + 1)
            total += overlap[others].sum()
            nearest = np.argpartition(np.where(others, -cosine, np.inf), k - 1, axis=1)[:, :k]
            near += np.take_along_axis(overlap, nearest, axis=1).sum()
            work.advance(len(chunk))
    rows = [SharedCodes(s, int(n), float(cosines[s] / n)) for s, n in enumerate(pairs) if n]
    num_pairs = max(1, int(pairs.sum()))
    return NeighbourAgreement(k, near / max(1, k * len(anchors)), total / num_pairs, rows)


def _shared_codes(left: AnyInts, right: AnyInts, sizes: tuple[int, ...]) -> tuple[Ints, Ints]:
    """Return two (A, N): positions with equal codes, positions where both have a code."""
    shared = np.zeros((len(left), len(right)), np.int64)
    comparable = np.zeros_like(shared)
    for position, size in enumerate(sizes):
        both = (left[:, position, None] < size) & (right[None, :, position] < size)
        comparable += both
        shared += both & (left[:, position, None] == right[None, :, position])
    return shared, comparable


def _entropy(values: Ints) -> float:
    counts = np.unique(values, return_counts=True)[1]
    shares = counts / max(1, len(values))
    return float(-(shares * np.log(shares)).sum()) + 0.0
