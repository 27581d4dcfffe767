"""The ids of every feature of ranking rows: made here alike for training and for serving.

Legend: n rows of an entity, F features.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import numpy as np

from trec_semid.core.arrays import Array
from trec_semid.data.features import Feature, Sources

Bags = tuple[Array, Array]
"""Ids (sum of lengths,), row after row, and lengths (n,)."""


class Entities(NamedTuple):
    """Whose rows the ids come from, each as item or user rows with how many of them a ranking row has."""

    user: Bags
    """One user row, or none of an unknown user."""
    item: Bags
    history: Bags | None
    """Item rows, oldest first; None where rows carry no history."""


@final
class RowFeatures:
    """Makes the ids of features from rows of users and items."""

    def __init__(self, features: Sequence[Feature], sources: Sources) -> None:
        self.features, self._sources = tuple(features), sources

    def of(self, entities: Entities) -> list[Bags]:
        """Return the ids of each of the F features; those of an entity have as many rows as it has here."""
        known = {name: bags for name, bags in entities._asdict().items() if bags is not None}
        codes = {name: self._codes(rows) for name, (rows, _) in known.items() if name != "user"}
        return [self._part(feature, known[feature.entity], codes) for feature in self.features]

    def _codes(self, items: Array) -> Array | None:
        # Whole semantic IDs at once: one random read an item instead of one a code.
        return None if self._sources.codes is None else self._sources.codes.take(items, axis=0).T

    def _part(self, feature: Feature, bags: Bags, codes: Mapping[str, Array | None]) -> Bags:
        rows, lengths = bags
        if feature.name in self._sources.fields:
            values, each = self._sources.fields[feature.name].take(rows)
            return values, _at_known(each, lengths)
        if feature.role in ("item_code", "history_code"):
            of_entity = codes[feature.entity]
            assert of_entity is not None, "code features are described with codes at hand"
            return of_entity[feature.position], lengths
        if self._sources.prefixes is not None and feature.role in ("item_prefix", "history_prefix"):
            return self._sources.prefixes[rows, feature.position], lengths
        if self._sources.has_id is not None and feature.role in ("item", "history"):
            return chosen_of(rows, lengths, self._sources.has_id[rows])
        return rows, lengths


def chosen_of(rows: Array, lengths: Array, stays: Array) -> Bags:
    """Return the bags of (n,) lengths with those of their rows alone that stay (sum of lengths,)."""
    up_to = np.concatenate([[0], np.cumsum(stays)])
    ends = np.cumsum(lengths)
    return rows[stays], (up_to[ends] - up_to[ends - lengths]).astype(lengths.dtype)


def _at_known(each: Array, lengths: Array) -> Array:
    """Return (n,): lengths of those that are known, and 0 of an unknown one."""
    if len(each) == len(lengths):
        return each
    spread = np.zeros(len(lengths), each.dtype)
    spread[lengths > 0] = each
    return spread
