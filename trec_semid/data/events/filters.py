"""Which users and items stay: the k-core."""

from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from trec_semid.core.arrays import AnyInts, Flags
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.data.events.duplicates import DuplicatePolicy


class FilterConfig(Config):
    """Which events stay: how many a user and an item need, and what is done about unknown ids.

    Events are counted again and again until all users and items that stay have enough.
    """

    min_user_events: int = Field(default=1, ge=0)
    min_item_events: int = Field(default=0, ge=0)
    """0 keeps items of the catalogue that nobody touched yet."""
    unknown_items: Literal["refuse", "drop"] = "refuse"
    """Events on items that the items file does not list."""
    unknown_users: Literal["refuse", "drop", "keep"] = "refuse"
    """Events of users that the users file does not list; those that stay have no side fields."""
    duplicates: DuplicatePolicy = "keep"
    """Rows that repeat user, item, time, behaviour and rating of an earlier one; counted either way."""

    def rule(self, keep_where: str | None = None) -> str:
        """Return the filter in words."""
        rules = ["no exact duplicates"] if self.duplicates == "drop" else []
        unknown = [
            f"unknown {name}"
            for name, policy in (("items", self.unknown_items), ("users", self.unknown_users))
            if policy == "drop"
        ]
        rules += [f"no events of {' or '.join(unknown)}"] if unknown else []
        rules += [f"items where {keep_where}"] if keep_where else []
        if self.min_user_events > 1 or self.min_item_events > 1:
            least = f"users with >= {self.min_user_events}, items with >= {self.min_item_events} events"
            rules.append(f"k-core: {least}")
        return "; ".join(rules) or "none"


class Core(NamedTuple):
    """What a k-core keeps."""

    events: Flags
    users: Flags
    items: Flags


def k_core(
    users: AnyInts,
    items: AnyInts,
    num_users: int,
    num_items: int,
    config: FilterConfig,
    file: str | None = None,
) -> Core:
    """Return the largest part in which every user and item has enough events inside the part.

    Removing a user takes events from items and the other way round, so both are counted until nothing
    changes; the fixed point does not depend on the order of removal.

    Args:
        users: (n,) user of every event.
        items: (n,) item of every event.
        num_users: users there are, with or without events.
        num_items: items there are.
        config: the two minima.
        file: where the events come from, for errors.

    Raises:
        DataError: nothing is left.
    """
    all_users, all_items = users, items
    retained_users, retained_items = np.ones(num_users, bool), np.ones(num_items, bool)
    while True:
        retained_users &= np.bincount(users, minlength=num_users) >= config.min_user_events
        retained_items &= np.bincount(items, minlength=num_items) >= config.min_item_events
        stays = retained_users[users] & retained_items[items]
        if stays.all():
            break
        users, items = users[stays], items[stays]
    if len(users) == 0:
        raise DataError(
            f"no event is left of {len(all_users):,} (filter: {config.rule()})",
            file=file,
            field="filter",
            remedy="Ask for fewer events a user or item, or drop fewer unknown ids",
        )
    return Core(retained_users[all_users] & retained_items[all_items], retained_users, retained_items)
