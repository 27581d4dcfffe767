"""A planted world: items whose factors show in text, in vision, in both, or only in the two together.

Every factor is a fair coin in {-1, +1}, drawn independently for each item i:

    a_i (text only)   b_i (vision only)   r_i (redundant)   p_i, q_i (two halves)   s_i = p_i · q_i (synergy)
    x_text,i   = A_text   (w · [a_i, r_i, p_i]) + σ_text   ε      A with orthonormal columns, ε ~ N(0, 1)
    x_vision,i = A_vision (w · [b_i, r_i, q_i]) + σ_vision ε      w the loudness of each kind

A user u likes item i by what the factors are worth to the user:

    θ_u = √agreement · μ + √(1 - agreement) · ε_u          μ of signs, shared by all users; ε_u ~ N(0, 1)
    η_ui = bias + Σ_g strength_g · <θ_u,g , f_i,g> / √n_g   over g: text, vision, redundant, synergy
    P(label = 1) = 1 / (1 + exp(-η_ui))

and is shown item floor(N · v^popularity_skew), v uniform; users are drawn likewise by activity_skew.

Partial information decomposition (Williams and Beer, "Nonnegative Decomposition of Multivariate
Information", 2010) splits what text T and vision V say of a factor f:

    I(f; T, V) = redundancy + unique to T + unique to V + synergy
    I(f; T)    = redundancy + unique to T                   I(f; V) = redundancy + unique to V

Here a factor is of one kind, exactly: a has I(a; V) = 0 and I(a; T, V) = I(a; T), so all of it is unique
to text, and b mirrors it. s is the parity of two fair coins, one in each modality: I(s; T) = I(s; V) = 0
whatever the noise, so all of I(s; T, V) is synergy, and only what reads both modalities together can find
it. `synthetic_truth` gives the bits in closed form.

Legend: N items, U users, F factors that show, G preference dimensions, n rows.
"""

from typing import Any, Literal, NamedTuple, final

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from trec_semid.core.arrays import Array
from trec_semid.core.config import Config, Place
from trec_semid.core.paths import join
from trec_semid.core.seeds import numpy_generator
from trec_semid.data.raw.events import EventColumns

_BLOCK = 1 << 16
"""Rows drawn from one random stream: what a row holds depends on the seed and its number alone, and not on
how many are asked for at a time."""
_ITEMS_A_BLOCK = 1 << 12


class FactorsConfig(Config):
    """A number for each kind of factor."""

    text: float = Field(ge=0)
    vision: float = Field(ge=0)
    redundant: float = Field(ge=0)
    synergy: float = Field(ge=0)


class CountsConfig(Config):
    """How many factors of each kind an item has."""

    text: NonNegativeInt = 2
    vision: NonNegativeInt = 2
    redundant: NonNegativeInt = 0
    synergy: int = Field(default=2, ge=0, le=6)
    """At most 6: the truth without synergy averages over all 2^n patterns."""


class SyntheticConfig(Config):
    """A planted catalogue, its users, and what they did."""

    kind: Literal["synthetic"] = "synthetic"
    folder: Place
    """Where raw tables and truth are written, and read again when they are of this very config."""
    seed: NonNegativeInt = 0
    num_events: int = Field(100_000, ge=1)
    num_users: PositiveInt = 1000
    num_items: PositiveInt = 500
    factors: CountsConfig = CountsConfig()
    strength: FactorsConfig = FactorsConfig(text=0.5, vision=0.5, redundant=0.5, synergy=2.0)
    """What each kind is worth to users: standard deviation of its share of the logit, about."""
    bias: float = -0.5
    agreement: float = Field(0.5, ge=0, le=1)
    """How far users want the same: 0 = each has a taste of their own, 1 = all have one taste."""
    text_dim: PositiveInt = 16
    vision_dim: PositiveInt = 16
    text_noise: float = Field(0.25, gt=0)
    """Standard deviation of each coordinate; a factor's own step along its direction is ± its loudness."""
    vision_noise: float = Field(0.25, gt=0)
    loudness: FactorsConfig = FactorsConfig(text=1, vision=1, redundant=1, synergy=1)
    """How large each kind shows in content; what is loud need not be what users care for."""
    popularity_skew: float = Field(2.0, ge=1)
    """1 = all items are shown equally often; the density of rank r is r^(1/skew - 1)."""
    activity_skew: float = Field(1.0, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> "SyntheticConfig":
        for name, dim in (("text", self.text_dim), ("vision", self.vision_dim)):
            shown = getattr(self.factors, name) + self.factors.redundant + self.factors.synergy
            if not 0 < shown <= dim:
                raise ValueError(f"{name} shows {shown} factors: {name}_dim holds 1 to {dim}")
        if not min(self.loudness.model_dump().values()):
            raise ValueError("loudness must be above 0: a kind that should not show has no factors")
        return self

    def inputs(self) -> list[str]:
        """Return the files and folders it is read from, which it writes first."""
        return [join(self.folder, name) for name in ("interactions", "items.parquet", "users.parquet")]

    def event_columns(self) -> EventColumns:
        """Return the mapping of the interactions."""
        return EventColumns(user="user_id", item="item_id", rating="label", timestamp="timestamp")


class Factors(NamedTuple):
    """Hidden traits of N items; each (N, number of that kind) int8 of -1 and +1."""

    text: Array
    vision: Array
    redundant: Array
    text_half: Array
    vision_half: Array

    @property
    def synergy(self) -> Array:
        """Parity of the halves, p · q: (n,)."""
        return self.text_half * self.vision_half


class Events(NamedTuple):
    """n consecutive events with their truth."""

    users: Array
    """(n,) int32 rows."""
    items: Array
    """(n,) int32 rows."""
    labels: Array
    """(n,) int8, 0 or 1."""
    probability: Array
    """(n,) float32: P(label = 1) given user and item, which no ranker can beat as a score."""
    without_synergy: Array
    """(n,) float32: the same given user and all of the item but its synergistic factors."""


@final
class World:
    """Everything that was drawn once: (N, F) factors and (U, G) preferences in memory, events on demand.

    Memory: 4 bytes for each factor of an item and each preference of a user.
    """

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self.factors = _draw_factors(config)
        self.preferences = _draw_preferences(config)
        """(U, G) float32: √agreement · μ + ..., in the order text, vision, redundant, synergy."""
        self._worth = self.preferences * _scales(config)
        parts = (self.factors.text, self.factors.vision, self.factors.redundant, self.factors.synergy)
        self._taste_axes = np.concatenate(parts, axis=1).astype(np.float32)
        num_synergy = config.factors.synergy
        signs = (np.arange(1 << num_synergy)[:, None] >> np.arange(num_synergy)) & 1
        patterns = (2 * signs - 1).astype(np.float32)
        self._alone = self._worth.shape[1] - num_synergy
        self._synergy_terms = self._worth[:, self._alone :] @ patterns.T

    def content(self, start: int, stop: int, modality: Literal["text", "vision"]) -> Array:
        """Return the vectors (stop - start, dim) float32 of these items."""
        config, factors = self.config, self.factors
        own, half = (
            (factors.text, factors.text_half) if modality == "text" else (factors.vision, factors.vision_half)
        )
        dim, noise = (
            (config.text_dim, config.text_noise)
            if modality == "text"
            else (config.vision_dim, config.vision_noise)
        )
        loudness = config.loudness
        kinds = [
            (own, getattr(loudness, modality)),
            (factors.redundant, loudness.redundant),
            (half, loudness.synergy),
        ]
        shown = np.concatenate([coins[start:stop] * np.float32(loud) for coins, loud in kinds], axis=1)
        axes = mixing(config, modality)
        noises = _in_blocks(
            start,
            stop,
            _ITEMS_A_BLOCK,
            lambda block: numpy_generator(config.seed, "content", modality, block).standard_normal(
                (_ITEMS_A_BLOCK, dim), np.float32
            ),
        )
        return shown @ axes.T + np.float32(noise) * noises

    def events(self, start: int, stop: int) -> Events:
        """Return the events start ... stop - 1, the same however they are asked for."""
        config = self.config
        drawn = _in_blocks(
            start,
            stop,
            _BLOCK,
            lambda block: numpy_generator(config.seed, "events", block).random((_BLOCK, 3)),
        )
        users = _skewed(drawn[:, 0], config.num_users, config.activity_skew)
        items = _skewed(drawn[:, 1], config.num_items, config.popularity_skew)
        worth, axes = self._worth[users], self._taste_axes[items]
        alone = np.float32(config.bias) + np.einsum(
            "ng,ng->n", worth[:, : self._alone], axes[:, : self._alone]
        )
        synergy = np.einsum("ng,ng->n", worth[:, self._alone :], axes[:, self._alone :])
        probability = _sigmoid(alone + synergy)
        without = _sigmoid(alone[:, None] + self._synergy_terms[users]).mean(1, dtype=np.float32)
        labels = (drawn[:, 2] < probability).astype(np.int8)
        return Events(users, items, labels, probability, without)


def mixing(config: SyntheticConfig, modality: Literal["text", "vision"]) -> Array:
    """Return A (dim, F) float32 with orthonormal columns."""
    dim = config.text_dim if modality == "text" else config.vision_dim
    own = config.factors.text if modality == "text" else config.factors.vision
    shown = own + config.factors.redundant + config.factors.synergy
    drawn = numpy_generator(config.seed, "mixing", modality).standard_normal((dim, shown))
    return np.linalg.qr(drawn)[0].astype(np.float32)


def _draw_factors(config: SyntheticConfig) -> Factors:
    counts = config.factors
    sizes = [counts.text, counts.vision, counts.redundant, counts.synergy, counts.synergy]
    coins = numpy_generator(config.seed, "factors").integers(
        0, 2, (config.num_items, sum(sizes)), dtype=np.int8
    )
    return Factors(*np.split(2 * coins - 1, np.cumsum(sizes)[:-1], axis=1))


def _draw_preferences(config: SyntheticConfig) -> Array:
    counts = config.factors
    width = counts.text + counts.vision + counts.redundant + counts.synergy
    shared = 2.0 * numpy_generator(config.seed, "shared taste").integers(0, 2, width) - 1
    own = numpy_generator(config.seed, "own taste").standard_normal((config.num_users, width), np.float32)
    mixed = np.sqrt(config.agreement) * shared + np.sqrt(1 - config.agreement) * own
    return mixed.astype(np.float32)


def _scales(config: SyntheticConfig) -> Array:
    """Return (G,): strength / √n of the kind that each preference is about."""
    scales: list[float] = []
    for kind in ("text", "vision", "redundant", "synergy"):
        number = getattr(config.factors, kind)
        scales += [getattr(config.strength, kind) / np.sqrt(max(number, 1))] * number
    return np.asarray(scales, np.float32)


def _in_blocks(start: int, stop: int, size: int, draw: Any) -> Array:
    parts = [
        draw(block)[max(start - block * size, 0) : stop - block * size]
        for block in range(start // size, -(-stop // size))
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _skewed(uniform: Array, size: int, skew: float) -> Array:
    drawn = (uniform if skew == 1 else uniform**skew) * size
    return np.minimum(drawn, size - 1).astype(np.int32)


def _sigmoid(logits: Array) -> Array:
    return np.float32(1) / (np.float32(1) + np.exp(-logits))
