"""Sampled negatives: for data that only says what users did, events that say what they did not do."""

from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, PositiveInt

from trec_semid.core.arrays import Array, Flags, Ints
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.core.seeds import numpy_generator
from trec_semid.data.schema import SPLITS, Split
from trec_semid.runtime.logs import working

NEGATIVE = "negative"
"""Behaviour of a sampled negative; it never enters a history."""
_BLOCK = 1 << 20
_ROUNDS = 30


class NegativesConfig(Config):
    """Events with label 0 that are drawn beside every positive, after the split.

    A negative is an item that its user touches nowhere in the data. It takes the time, order and part of
    its positive, so a history 'strictly before' it is the history of its positive.
    """

    per_positive: PositiveInt = 1
    strategy: Literal["popularity", "uniform"] = "popularity"
    """Popularity draws items as often as they occur in training, so that a model cannot tell negatives by
    being rare; an item without a training event is then never a negative. Uniform draws from all items."""
    splits: list[Split] = Field(default=list(SPLITS), min_length=1)
    """Parts that get negatives."""

    def rule(self) -> str:
        """Return the rule in words, to follow the label rule."""
        parts = " and ".join(self.splits)
        return f"; {self.per_positive} sampled negative(s) a positive in {parts}, by {self.strategy}"


class Sampled(NamedTuple):
    """Events with negatives among them. Legend: m events."""

    source: Ints
    """(m,) which event a row stands for, or beside which it was drawn."""
    items: Array
    """(m,) its item."""
    is_negative: Flags
    """(m,)"""


def add_negatives(
    config: NegativesConfig, users: Array, items: Array, targets: Array, weights: Array, seed: int
) -> Sampled:
    """Draw negatives and put each right after its positive.

    Args:
        config: how many and how.
        users: (n,) user rows of events in order.
        items: (n,) item rows.
        targets: (n,) bool, positives that get negatives.
        weights: (num_items,) training events of every item.
        seed: of the draw.

    Raises:
        DataError: a user touched every item that can be drawn.
    """
    repeats = np.where(targets, 1 + config.per_positive, 1)
    source = np.repeat(np.arange(len(users)), repeats)
    is_negative = np.ones(len(source), bool)
    # Of an event's copies the first is the event itself.
    is_negative[np.cumsum(repeats) - repeats] = False
    if config.strategy == "uniform":
        weights = np.ones(len(weights))
    new_items = items[source]
    new_items[is_negative] = draw_untouched(users[source[is_negative]], users, items, weights, seed)
    return Sampled(source, new_items, is_negative)


def draw_untouched(users_to_draw: Array, users: Array, items: Array, weights: Array, seed: int) -> Array:
    """Draw one item for each given user from the items the user never touched.

    Draws with probability proportional to `weights` among the allowed items: by rejection, and for the few
    that rejection does not settle (users who touched nearly everything) from the exact list.

    Args:
        users_to_draw: (w,) user rows.
        users: (n,) users of all events.
        items: (n,) items of all events.
        weights: (num_items,) not negative.
        seed: of the draw.

    Raises:
        DataError: a user touched every item of positive weight.
    """
    rng = numpy_generator(seed, "negatives")
    num_items = len(weights)
    # One number for each (user, item), sorted: whether a user touched an item is a binary search.
    touched = np.unique(users.astype(np.int64) * num_items + items)
    cumulative = np.cumsum(weights, dtype=np.float64)
    drawn = np.empty(len(users_to_draw), items.dtype)
    with working("negatives", len(users_to_draw)) as work:
        for start in range(0, len(users_to_draw), _BLOCK):
            block = users_to_draw[start : start + _BLOCK]
            drawn[start : start + _BLOCK] = _draw_block(block, touched, cumulative, rng)
            work.advance(len(block))
    return drawn


def _draw_block(users_to_draw: Array, touched: Ints, cumulative: Array, rng: np.random.Generator) -> Array:
    drawn = np.empty(len(users_to_draw), np.int64)
    left = np.arange(len(users_to_draw))
    base = users_to_draw.astype(np.int64) * len(cumulative)
    for _ in range(_ROUNDS):
        drawn[left] = _draw(cumulative, len(left), rng)
        # Only draws that hit a touched item are repeated, so accepted ones keep the distribution asked for.
        left = left[_contains(touched, base[left] + drawn[left])]
        if len(left) == 0:
            return drawn
    for user in np.unique(users_to_draw[left]):
        mine = left[users_to_draw[left] == user]
        drawn[mine] = _draw_exactly(int(user), len(mine), touched, cumulative, rng)
    return drawn


def _draw(cumulative: Array, size: int, rng: np.random.Generator) -> Ints:
    # side="right" steps over items of weight 0, whose cumulative weight equals their neighbour's.
    return np.searchsorted(cumulative, rng.random(size) * cumulative[-1], side="right")


def _contains(touched: Ints, keys: Ints) -> Flags:
    at = np.searchsorted(touched, keys)
    at[at == len(touched)] = 0
    return touched[at] == keys


def _draw_exactly(user: int, size: int, touched: Ints, cumulative: Array, rng: np.random.Generator) -> Ints:
    num_items = len(cumulative)
    first, last = np.searchsorted(touched, (user * num_items, (user + 1) * num_items))
    weights = np.diff(cumulative, prepend=0.0)
    weights[touched[first:last] - user * num_items] = 0
    if not weights.any():
        remedy = "Filter such users out"
        if last - first < num_items:  # what is left has no training event
            remedy += ', or set negatives.strategy = "uniform"'
        raise DataError(
            f"no negative is left for user row {user}, who touched every item that can be drawn",
            remedy=remedy,
        )
    return _draw(np.cumsum(weights), size, rng)
