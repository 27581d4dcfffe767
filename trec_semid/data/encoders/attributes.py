"""Attribute content: categories, numbers and years of an item as one vector, without a network.

Every item is a sparse row over features: one per frequent category value, one per number, one per
decade. With `dim` the rows are projected to that width. A number that is all there is has two features:
content is compared by direction, and one feature alone has no other than its sign.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions when it is imported)

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import numpy as np
import pyarrow.compute as pc
from pydantic import PositiveInt, model_validator

from trec_semid.core.arrays import Array
from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError
from trec_semid.data.encoders.chunks import Chunk, Items
from trec_semid.data.encoders.columns import read_numbers, read_values, read_years
from trec_semid.data.encoders.store import Dtype

if TYPE_CHECKING:
    from scipy.sparse import csr_array  # half a second, which only those pay who have attributes

_log = logging.getLogger(__name__)
_CHUNK = 2048
_FIT_ROWS = 65_536
"""Items that the singular vectors are computed from; more of them change them little."""
_FARTHEST = 5.0
"""Numbers are cut at this many standard deviations from their mean."""
_DECADE = 10.0
ONE_LINE_OF_ATTRIBUTES = (
    "These columns say the same of every item, or numbers that rise and fall together: name one by which "
    "items differ, or one such number alone, and set dim to 2 or more, if at all"
)
"""The remedy where all vectors are multiples of one."""


class AttributesConfig(Config):
    """A vector of an item's categories, numbers and years; with none of them it is missing."""

    kind: Literal["attributes"] = "attributes"
    categories: list[str] = []
    """Columns of strings, or lists of strings, each value a feature."""
    numbers: list[str] = []
    """Columns of numbers; each is standardised, and 0, its mean, where missing. A number beside which nothing
    tells items apart is an angle instead: 180 degrees times the share of items with a smaller one."""
    years: list[str] = []
    """Columns of years or dates; each is shared between the two decades nearest to it."""
    separator: str | None = None
    """Splits the strings of `categories` into several values, e.g. "|"."""
    min_count: PositiveInt = 2
    """Values that fewer items have are left out."""
    max_values: PositiveInt = 1024
    """At most so many values of each column, the most frequent."""
    weighting: Literal["idf", "none"] = "idf"
    """Weigh values by ln((1 + N) / (1 + items with it)) + 1, so that rare ones count more."""
    dim: PositiveInt | None = None
    """Project the features to this width; by default one dimension per feature."""
    reduction: Literal["svd", "random"] = "svd"
    """By truncated singular value decomposition, or by random signs (Johnson-Lindenstrauss)."""
    dtype: Dtype = "float32"

    @model_validator(mode="after")
    def _has_columns(self) -> "AttributesConfig":
        if not self.columns:
            raise ValueError("names no column: give categories, numbers or years")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("names a column twice")
        return self

    @property
    def columns(self) -> list[str]:
        """Item columns it needs."""
        return [*self.categories, *self.numbers, *self.years]

    @property
    def source(self) -> str:
        """Where the vectors come from."""
        reduced = f", {self.reduction} to {self.dim}" if self.dim else ""
        return f"attributes {', '.join(self.columns)}{reduced}"


class _Block(NamedTuple):
    """What one column adds: feature `ids` with `weights` for items `rows`."""

    rows: Array
    ids: Array
    weights: Array
    num_features: int


def attribute_chunks(config: AttributesConfig, items: Items) -> Iterator[Chunk]:
    """Yield attribute vectors. Takes seconds for a million items, so nothing is cached.

    Raises:
        DataError: a column of a wrong type, a number that is not finite, or a year that is none.
        ConfigError: `dim` is not less than the number of features.
    """
    features = attribute_features(config, items)
    present = np.diff(features.indptr) > 0
    components = _components(config, features, present) if config.dim else None
    for start, stop in items.spans(_CHUNK):
        rows = features[start:stop].toarray()
        vectors = rows if components is None else rows @ components
        # All of an item's numbers at their means: no direction, and so nothing to compare.
        yield Chunk(vectors, present[start:stop] & vectors.any(axis=1))


def attribute_features(config: AttributesConfig, items: Items) -> "csr_array":
    """Return (num_items, num_features) float32 rows; each column's part has length 1 (numbers: their scores).

    An item without any known value has an empty row.
    """
    named = {name: _categories(config, items, name) for name in config.categories}
    named |= {name: _numbers(items, name) for name in config.numbers}
    named |= {name: _decades(items, name) for name in config.years}
    telling = [name for name, block in named.items() if block.weights.any()]
    # At unit length a lone score would be its sign; as the angle of a point it still tells items apart.
    if len(telling) == 1 and telling[0] in config.numbers:
        named[telling[0]] = _angles(items, telling[0])
    blocks = list(named.values())
    firsts = np.cumsum([0, *(block.num_features for block in blocks)])
    rows = np.concatenate([block.rows for block in blocks])
    ids = np.concatenate([block.ids + first for block, first in zip(blocks, firsts[:-1], strict=True)])
    weights = np.concatenate([block.weights for block in blocks]).astype(np.float32)
    if len(telling) > 1:
        _tell_lone_numbers([(named[name], name in config.numbers) for name in named], len(items.source_rows))
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=len(items.source_rows))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    shape = len(items.source_rows), int(firsts[-1])
    from scipy.sparse import csr_array

    return csr_array((weights[order], ids[order], offsets), shape=shape)


def _tell_lone_numbers(blocks: list[tuple[_Block, bool]], num_items: int) -> None:
    """Say how many items are known by one number alone: the direction of such a row is the number's sign."""
    known, numbers = np.zeros(num_items, np.int64), np.zeros(num_items, np.int64)
    for block, is_number in blocks:
        counts = np.bincount(block.rows[block.weights != 0], minlength=num_items)
        known += counts
        numbers += counts if is_number else 0
    num_lone = int(((known == 1) & (numbers == 1)).sum())
    if num_lone:
        told = (
            "attributes: %s of %s items have nothing but one number; of it only counts whether it is above "
            "the mean. Give that number a modality of its own to tell them apart"
        )
        _log.warning(told, f"{num_lone:,}", f"{num_items:,}")


def _categories(config: AttributesConfig, items: Items, name: str) -> _Block:
    num_items = len(items.source_rows)
    rows, values = read_values(items, name, 0, num_items, config.separator)
    encoded = pc.dictionary_encode(values)
    num_values = len(encoded.dictionary)
    # Item and value as one integer: a sort lays repeats side by side, without a loop over items.
    pairs = np.sort(rows * max(num_values, 1) + np.asarray(encoded.indices), kind="stable")
    # A value an item names twice counts once.
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    rows, ids = pairs // max(num_values, 1), pairs % max(num_values, 1)
    counts = np.bincount(ids, minlength=num_values)
    # Ordered by count, then name: not by who came first, so that other orders of items agree.
    by_name = np.asarray(pc.array_sort_indices(encoded.dictionary)).astype(np.int64)
    ranked = by_name[np.argsort(-counts[by_name], kind="stable")]
    vocabulary_ids = ranked[: config.max_values]
    vocabulary_ids = vocabulary_ids[counts[vocabulary_ids] >= config.min_count]
    new_ids = np.full(num_values, -1)
    new_ids[vocabulary_ids] = np.arange(len(vocabulary_ids))
    known = new_ids[ids] >= 0
    rows, ids, counts = rows[known], new_ids[ids[known]], counts[vocabulary_ids]
    weights = np.ones(len(ids))
    if config.weighting == "idf":
        weights = (np.log((1 + num_items) / (1 + counts)) + 1)[ids]
    return _Block(rows, ids, weights / _norms(rows, weights, num_items)[rows], len(vocabulary_ids))


def _numbers(items: Items, name: str) -> _Block:
    values = read_numbers(items, name)
    rows = np.flatnonzero(~np.isnan(values))
    known = values[rows]
    deviation = known.std() if len(known) else 0.0
    scores = (known - known.mean()) / deviation if deviation > 0 else np.zeros(len(known))
    return _Block(rows, np.zeros(len(rows), np.int64), scores.clip(-_FARTHEST, _FARTHEST), 1)


def _angles(items: Items, name: str) -> _Block:
    """Return numbers as points on half a circle, so that near numbers have near directions."""
    values = read_numbers(items, name)
    rows = np.flatnonzero(~np.isnan(values))
    known = np.sort(values[rows])
    below, upto = (np.searchsorted(known, values[rows], side=side) for side in ("left", "right"))
    angles = np.pi * (below + upto) / (2 * len(rows))
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return _Block(np.repeat(rows, 2), np.tile([0, 1], len(rows)), points.reshape(-1), 2)


def _decades(items: Items, name: str) -> _Block:
    years = read_years(items, name)
    rows = np.flatnonzero(~np.isnan(years))
    if not len(rows):
        return _Block(rows, rows, np.empty(0), 1)
    place = years[rows] / _DECADE
    first = int(np.floor(place.min()))
    below = np.floor(place)
    upper = place - below
    weights = np.stack([1 - upper, upper], axis=1)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    ids = np.stack([below, below + 1], axis=1).astype(np.int64) - first
    used = weights > 0
    num_features = int(ids[used].max()) + 1
    return _Block(np.repeat(rows, 2)[used.reshape(-1)], ids[used], weights[used], num_features)


def _norms(rows: Array, weights: Array, num_items: int) -> Array:
    return np.sqrt(np.bincount(rows, weights**2, minlength=num_items))


def _components(config: AttributesConfig, features: "csr_array", present: Array) -> Array:
    """Return the (num_features, dim) projection."""
    dim, num_features = config.dim or 0, cast("tuple[int, int]", features.shape)[1]
    if dim >= num_features:
        raise ConfigError(
            f'content of kind "attributes": dim = {dim}, but {", ".join(config.columns)} give '
            f"{num_features} features. Leave dim out, or lower it or min_count."
        )
    if config.reduction == "random":
        from trec_semid.core.seeds import numpy_generator  # imports torch

        signs = numpy_generator(0, "attributes", num_features, dim).choice(
            np.array([-1.0, 1.0], np.float32), (num_features, dim)
        )
        return signs / np.float32(np.sqrt(dim))
    fitted = np.flatnonzero(present)[:: max(1, len(present) // _FIT_ROWS)]  # spread over the items
    return leading_directions(features[fitted], dim)


def leading_directions(rows: "csr_array", dim: int) -> Array:
    """Return (num_features, dim) float32 leading right singular vectors, of falling singular value.

    Args:
        rows: (n, num_features) feature rows.
        dim: less than num_features.
    """
    from scipy.sparse.linalg import svds

    exact, smaller = rows.astype(np.float64), min(cast("tuple[int, int]", rows.shape))
    if dim < smaller:
        start = np.random.default_rng(0).standard_normal(smaller)
        _, values, vectors = cast("tuple[Array, Array, Array]", svds(exact, k=dim, v0=start))
        leading = vectors[np.argsort(-values, kind="stable")].T
    else:  # fewer rows than directions: svds finds fewer than there are rows
        leading = np.linalg.svd(exact.toarray(), full_matrices=True)[2][:dim].T
    # The sign of a singular vector is free: make its largest entry positive.
    largest = np.abs(leading).argmax(axis=0)
    return (leading * np.sign(leading[largest, np.arange(dim)])).astype(np.float32)
