"""All events in one order, with part, label and behaviour: what `events/` holds, as columns."""

from typing import NamedTuple

import numpy as np

from trec_semid.core.arrays import Array
from trec_semid.core.errors import DataError
from trec_semid.data.events.linking import Linked
from trec_semid.data.events.negatives import NEGATIVE, NegativesConfig, add_negatives
from trec_semid.data.events.ordering import TieRule, count_ties, sort_events, stable_argsort
from trec_semid.data.events.splits import DROPPED, TRAIN, SplitConfig, split_events
from trec_semid.data.raw.times import Times, TimeUnit
from trec_semid.data.schema import SPLITS, Split, SplitFacts
from trec_semid.runtime.logs import working

EVENT = "event"
"""Behaviour of events where the source does not name kinds."""


class Timeline(NamedTuple):
    """Events sorted by order. Legend: n events, sampled negatives included."""

    users: Array
    """(n,) int32 user rows."""
    items: Array
    """(n,) int32 item rows."""
    labels: Array | None
    """(n,) float32, NaN where an event has none."""
    times: Array | None
    """(n,) int64, in the unit of the source."""
    order: Array
    """(n,) int64: 0, 1, ... over real events; a sampled negative repeats the order of its positive."""
    parts: Array
    """(n,) int8, index into SPLITS."""
    behaviours: Array
    """(n,) int8 into `behaviour_names`."""
    behaviour_names: list[str]
    is_negative: Array
    """(n,) bool: sampled, not observed."""
    tied_events: int | None
    """Observed events that share user and time with another."""
    held_out: int
    """Events that no part keeps, which are not here."""


def arrange(
    events: Linked,
    behaviour_names: list[str],
    split: SplitConfig,
    ties: TieRule,
    seed: int,
    *,
    unit: TimeUnit = "s",
    file: str | None = None,
) -> Timeline:
    """Sort the events, split them, and drop what no part keeps.

    Args:
        events: that stay.
        behaviour_names: of their kinds.
        split: the rule.
        ties: order of events of equal time.
        seed: of that order.
        unit: of times.
        file: where they come from, for errors.

    Raises:
        DataError: a part comes out empty, the split needs times that are not there, or a behaviour is called
            like the sampled ones.
    """
    if NEGATIVE in behaviour_names:
        remedy = "Rename it in the source: readers leave sampled negatives out of histories and counts"
        raise DataError(
            "this behaviour is kept for sampled negatives",
            file=file,
            field="behaviour",
            value=NEGATIVE,
            remedy=remedy,
        )
    with working("sort events"):
        index = sort_events(events.times, events.positions, len(events.users), ties, seed)
    users, items = events.users[index], events.items[index]
    times = None if events.times is None else events.times[index]
    by_user = stable_argsort(users)
    tied = None if times is None else count_ties(users, times, by_user)
    clock = None if times is None else Times(times, unit)
    parts = split_events(split, users, items, clock, by_user, file)
    remaining = np.flatnonzero(parts != DROPPED)
    index = index[remaining]
    behaviours = np.zeros(len(remaining), np.int8)
    if events.behaviours is not None:
        behaviours = events.behaviours[index].astype(np.int8)
    return Timeline(
        users[remaining],
        items[remaining],
        None if events.labels is None else events.labels[index],
        None if times is None else times[remaining],
        np.arange(len(remaining)),
        parts[remaining],
        behaviours,
        behaviour_names or [EVENT],
        np.zeros(len(remaining), bool),
        tied,
        len(events.users) - len(remaining),
    )


def with_negatives(timeline: Timeline, config: NegativesConfig, num_items: int, seed: int) -> Timeline:
    """Add sampled negatives after the positives of the chosen parts.

    Raises:
        DataError: there are no positives, or a user touched every item that can be drawn.
    """
    chosen = [SPLITS.index(name) for name in config.splits]
    targets = np.isin(timeline.parts, chosen)
    targets &= timeline.labels == 1 if timeline.labels is not None else False
    if not targets.any():
        raise DataError(
            "no positive event to draw negatives for", remedy="Change [label] or negatives.splits"
        )
    popularity = np.bincount(timeline.items[timeline.parts == TRAIN], minlength=num_items)
    sampled = add_negatives(config, timeline.users, timeline.items, targets, popularity, seed)
    source, negative = sampled.source, sampled.is_negative
    assert timeline.labels is not None
    return timeline._replace(
        users=timeline.users[source],
        items=sampled.items,
        labels=np.where(negative, np.float32(0), timeline.labels[source]),
        times=None if timeline.times is None else timeline.times[source],
        order=timeline.order[source],
        parts=timeline.parts[source],
        behaviours=np.where(negative, np.int8(len(timeline.behaviour_names)), timeline.behaviours[source]),
        behaviour_names=[*timeline.behaviour_names, NEGATIVE],
        is_negative=negative,
    )


def describe_splits(timeline: Timeline, num_users: int, num_items: int) -> dict[Split, SplitFacts]:
    """Return sizes of every part and how much of it training never saw.

    Sampled negatives are events of a part; users and items are counted over what was observed.
    """
    observed = (timeline.parts == TRAIN) & ~timeline.is_negative
    seen_users, seen_items = np.zeros(num_users, bool), np.zeros(num_items, bool)
    seen_users[timeline.users[observed]] = True
    seen_items[timeline.items[observed]] = True
    facts: dict[Split, SplitFacts] = {}
    for part, name in enumerate(SPLITS):
        here = timeline.parts == part
        happened = here & ~timeline.is_negative
        users, items = timeline.users[happened], timeline.items[happened]
        labels = None if timeline.labels is None else timeline.labels[here]
        facts[name] = SplitFacts(
            events=int(here.sum()),
            users=_distinct(users, num_users),
            items=_distinct(items, num_items),
            unseen_users=_distinct(users[~seen_users[users]], num_users),
            unseen_items=_distinct(items[~seen_items[items]], num_items),
            unseen_item_events=int((~seen_items[items]).sum()),
            negatives=int((here & timeline.is_negative).sum()),
            positives=None if labels is None else int((labels == 1).sum()),
        )
    return facts


def _distinct(rows: Array, size: int) -> int:
    return int(np.count_nonzero(np.bincount(rows, minlength=size)))
