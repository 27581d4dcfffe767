"""Parts of the evaluation rows: by how often training saw the item, and how active the user was in it."""

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import numpy as np
import pyarrow.dataset as pads
from numpy.typing import NDArray
from pydantic import Field

from trec_semid.core.arrays import Array, Flags, Ints
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.data.schema import Dataset

POPULARITY = ("popularity_head", "popularity_middle", "popularity_tail", "popularity_unseen")
ACTIVITY = ("activity_low", "activity_middle", "activity_high", "user_unseen")
STRATA = POPULARITY + ACTIVITY


class Strata(NamedTuple):
    """Which stratum each item and each user belongs to.

    Items with a training event, in order of (number of training events, row): the last quarter is the
    head, the first quarter the tail, what lies between the middle; each quarter is rounded down.
    Users with a training event, in the same order: first third low, last third high, rounded down,
    the rest middle. Items and users without a training event are the unseen. Every training event
    counts, whatever its label; sampled negatives never happened and do not. Equal counts are told apart
    by row, so strata have the stated sizes and never change between runs. The 25 % cuts are those of the
    MMQ paper (arXiv 2508.15281), 4.4.
    """

    items: NDArray[np.int8]
    """(num_items,) index into POPULARITY."""
    users: NDArray[np.int8]
    """(num_users,) index into ACTIVITY."""

    def masks(self, user_rows: Ints, item_rows: Ints) -> Iterator[tuple[str, Flags]]:
        """Yield the name of each stratum and (N,) which rows belong to it.

        Raises:
            DataError: a user or item row that the dataset does not have.
        """
        for names, of, rows, field in (
            (POPULARITY, self.items, item_rows, "item_row"),
            (ACTIVITY, self.users, user_rows, "user_row"),
        ):
            member = of[_inside(np.asarray(rows), len(of), field)]
            for index, name in enumerate(names):
                yield name, member == index


def training_strata(
    dataset: Dataset, cuts: "StrataConfig | None" = None, *, test_then_train: bool = False
) -> Strata:
    """Count the training events of each item and user, batch by batch, and cut the strata.

    Args:
        dataset: that has the events.
        cuts: how wide the strata are.
        test_then_train: whether it is of a day that is tested first: validation counts as training.
    """
    facts = dataset.facts
    item_events, user_events = np.zeros(facts.num_items, np.int64), np.zeros(facts.num_users, np.int64)
    known = ["train", "valid"] if test_then_train else ["train"]
    in_training = pads.field("split").isin(known) & _happened()
    for batch in dataset.event_files().to_batches(columns=["item_row", "user_row"], filter=in_training):
        item_events += _count(batch["item_row"].to_numpy(), facts.num_items, "item_row")
        user_events += _count(batch["user_row"].to_numpy(), facts.num_users, "user_row")
    return strata_of_counts(item_events, user_events, cuts)


class StrataConfig(Config):
    """How wide the strata are; by default quarters of items and thirds of users."""

    item_parts: Annotated[int, Field(ge=2)] = 4
    """Items seen in training are cut into so many equal parts: the first is the tail, the last the head."""
    user_parts: Annotated[int, Field(ge=2)] = 3
    """Users likewise: the first part is of low activity, the last of high."""


def strata_of_counts(item_events: Array, user_events: Array, cuts: StrataConfig | None = None) -> Strata:
    """Cut strata from (num_items,) and (num_users,) numbers of training events."""
    cuts = cuts or StrataConfig()
    head, middle, tail, unseen = range(4)
    items = _cut(item_events, cuts.item_parts, (tail, middle, head, unseen))
    low, middle, high, unseen = range(4)
    return Strata(items, _cut(user_events, cuts.user_parts, (low, middle, high, unseen)))


def _cut(events: Array, parts: int, names: tuple[int, int, int, int]) -> NDArray[np.int8]:
    """Name the first 1/parts of the seen rows, those between, the last 1/parts, and the unseen."""
    first, between, last, unseen = names
    seen = np.flatnonzero(events > 0)
    order = seen[np.argsort(events[seen], kind="stable")]
    size = len(order) // parts
    cut = np.full(len(events), unseen, np.int8)
    cut[order] = between
    cut[order[:size]] = first
    cut[order[len(order) - size :]] = last
    return cut


def _happened() -> pads.Expression:
    behaviour = pads.field("behaviour")
    return behaviour.is_null() | (behaviour != "negative")


def _count(rows: Ints, size: int, field: str) -> Ints:
    return np.bincount(_inside(rows, size, field), minlength=size)


def _inside(rows: Ints, size: int, field: str) -> Ints:
    outside = (rows < 0) | (rows >= size)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        remedy = f"The dataset has rows 0 to {size - 1}: use the dataset the events came from"
        raise DataError("no such row", row=row + 1, field=field, value=int(rows[row]), remedy=remedy)
    return rows
