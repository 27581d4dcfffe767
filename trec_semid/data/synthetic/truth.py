"""What can be known of a planted world: the information of its factors, and how well one can rank.

Content shows a coin c along its own direction as w (c + σ ε), σ the noise over the coin's loudness w, so
that all of its information is that of a binary input in Gaussian noise, y = c + σ ε:

    I(c; y)      = 1 - E[log2(1 + exp(-2 y / σ²))],  y ~ N(1, σ²)                                     [bits]
    I(c; y, y')  = the same at 1/σ² = 1/σ_text² + 1/σ_vision²      a redundant coin, seen twice
    I(s; y, y')  = 1 - E[h((1 + tanh(y/σ_text²) tanh(y'/σ_vision²)) / 2)],  h the binary entropy, s = p · q

Legend: n events, B bins.
"""

from functools import cache
from typing import NamedTuple, final

import numpy as np

from trec_semid.core.arrays import Array
from trec_semid.data.synthetic.world import Events, SyntheticConfig

_BINS = 1 << 14
_NODES = 201
_KINDS = ("text", "vision", "redundant", "synergy")


class Information(NamedTuple):
    """What each modality, and both together, say of one factor [bits]."""

    text: float
    vision: float
    both: float


def information(config: SyntheticConfig) -> dict[str, Information]:
    """Return the information of one factor of each kind that the world has."""
    return {kind: _bits_of(kind, config) for kind in _KINDS if getattr(config.factors, kind)}


def _bits_of(kind: str, config: SyntheticConfig) -> Information:
    loudness = getattr(config.loudness, kind)
    text, vision = config.text_noise / loudness, config.vision_noise / loudness
    if kind == "text":
        return Information(coin_bits(text), 0.0, coin_bits(text))
    if kind == "vision":
        return Information(0.0, coin_bits(vision), coin_bits(vision))
    if kind == "synergy":
        return Information(0.0, 0.0, parity_bits(text, vision))
    seen_twice = (text**-2 + vision**-2) ** -0.5
    return Information(coin_bits(text), coin_bits(vision), coin_bits(seen_twice))


def coin_bits(noise: float) -> float:
    """Return I(c; c + noise · ε) of a fair coin c in {-1, +1} [bits]."""
    y, weight = _around_one(noise)
    return float(1 - weight @ np.logaddexp(0, -2 * y / noise**2) / np.log(2))


@cache  # a third of a second, and worlds of other seeds have the same noises
def parity_bits(first: float, second: float) -> float:
    """Return what two noisy coins say of their product [bits]."""
    (y, weight), (z, other) = _around_one(first), _around_one(second)
    mean = np.tanh(y / first**2)[:, None] * np.tanh(z / second**2)[None, :]
    positive = (1 + mean) / 2
    entropy = -sum(p * np.log2(np.maximum(p, 1e-300)) for p in (positive, 1 - positive))
    return float(1 - weight @ entropy @ other)


@final
class Ceilings:
    """Expected AUC of the true probability, and of the best score without synergy, over all events.

    AUC = Σ P_b (N_below b + N_b / 2) / (Σ P · Σ N) with P_b, N_b the expected positives Σ p and negatives
    Σ (1 - p) of bin b: labels are averaged out, and B = 16,384 bins of equal width count as ties.
    """

    def __init__(self) -> None:
        self._sums = np.zeros((2, 2, _BINS))
        self.num_events = self.num_positives = 0

    def add(self, events: Events) -> None:
        """Count more events."""
        p = events.probability.astype(np.float64)
        for index, score in enumerate((events.probability, events.without_synergy)):
            bins = np.minimum((score * np.float32(_BINS)).astype(np.int64), _BINS - 1)
            self._sums[index, 0] += np.bincount(bins, p, _BINS)
            self._sums[index, 1] += np.bincount(bins, 1 - p, _BINS)
        self.num_events += len(p)
        self.num_positives += int(events.labels.sum())

    def result(self) -> dict[str, float]:
        """Return `auc` and `auc_without_synergy`."""
        truth, without = (_expected_auc(*sums) for sums in self._sums)
        return {"auc": truth, "auc_without_synergy": without}


def _expected_auc(positives: Array, negatives: Array) -> float:
    below = np.cumsum(negatives) - negatives / 2
    return float(positives @ below / (positives.sum() * negatives.sum()))


def _around_one(noise: float) -> tuple[Array, Array]:
    """Return nodes and weights of the expectation over N(1, noise²)."""
    nodes = np.linspace(-9, 9, 16 * _NODES)
    weights = np.exp(-(nodes**2) / 2)
    return 1 + noise * nodes, weights / weights.sum()
