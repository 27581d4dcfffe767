"""Interactions, items and users joined: unknown ids decided about, the filter applied, dense rows."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trec_semid.core.arrays import Array, Flags, Ints
from trec_semid.core.errors import DataError
from trec_semid.data.events.duplicates import check_duplicates, find_duplicates
from trec_semid.data.events.filters import Core, FilterConfig, k_core
from trec_semid.data.raw.columns import as_flags
from trec_semid.data.raw.entities import Entities, named_entities, with_unknown
from trec_semid.data.raw.events import RawEvents
from trec_semid.data.schema import RowCounts
from trec_semid.data.sources.source import Source
from trec_semid.runtime.logs import working


class Kept(NamedTuple):
    """The items or users of the dataset, N of them."""

    ids: pa.Array
    """(N,) text, in row order."""
    rows: Ints
    """(N,) their rows among `entities`."""
    entities: Entities
    """All there were, with what the source says of them."""


class Linked(NamedTuple):
    """Events of the dataset, still in source order. Legend: n events that stay."""

    users: Array
    """(n,) int32 user rows."""
    items: Array
    """(n,) int32 item rows."""
    labels: Array | None
    """(n,) float32."""
    times: Array | None
    """(n,) int64, in the unit of the raw events."""
    positions: Array | None
    """(n,) int64."""
    behaviours: Array | None
    """(n,) int32."""


class Links(NamedTuple):
    """The joined data."""

    events: Linked
    items: Kept
    users: Kept
    read: RowCounts
    """What there was, in the interactions and in the lists of items and users."""
    dropped: dict[str, RowCounts]
    """What was left out, by reason; an event counts under the first that applies."""
    duplicates: int
    """Events that repeat an earlier one."""


def link(source: Source, labels: Array | None, config: FilterConfig, keep_where: str | None) -> Links:
    """Join, filter and count densely; items and users keep the order of the source.

    Args:
        source: raw data.
        labels: (n,) label of every raw event.
        config: the filter.
        keep_where: item column; only items where it is true stay.

    Raises:
        DataError: an event names an unknown item or user or repeats another one, and the filter refuses
            that, or nothing is left.
    """
    raw = source.events
    items = source.items or named_entities(raw.item_ids, "item")
    users = source.users or named_entities(raw.user_ids, "user")
    if config.unknown_users == "keep":
        users = with_unknown(users, raw.user_ids)
    known_items, known_users = _match(raw.item_ids, items), _match(raw.user_ids, users)
    event_items, event_users = known_items[raw.items], known_users[raw.users]
    with working("duplicates"):
        repeats = find_duplicates(raw)
    check_duplicates(config.duplicates, repeats, raw)
    _refuse_unknown(event_items, items, raw, raw.items, config.unknown_items)
    _refuse_unknown(event_users, users, raw, raw.users, config.unknown_users)
    is_allowed = _allowed(items, keep_where)
    reasons = {
        "duplicates": repeats & (config.duplicates == "drop"),
        "unknown_items": event_items < 0,
        "unknown_users": event_users < 0,
        "keep_where": (event_items >= 0) & ~is_allowed[event_items],
    }
    stays, events_dropped = _by_reason(reasons)
    events = Linked(
        event_users, event_items, labels, raw.times and raw.times.values, raw.positions, raw.behaviours
    )
    events = _select(events, stays)
    with working("k-core"):
        core = k_core(events.users, events.items, len(users.ids), len(items.ids), config, raw.file)
    events_dropped["too_few_events"] = int((~core.events).sum())
    events = _select(events, core.events)
    retained_items, retained_users = core.items & is_allowed, core.users
    events = events._replace(
        users=_dense(retained_users)[events.users], items=_dense(retained_items)[events.items]
    )
    unknown = {"items": int((known_items < 0).sum()), "users": int((known_users < 0).sum())}
    return Links(
        events,
        _keep(items, retained_items),
        _keep(users, retained_users),
        RowCounts(
            events=len(raw.users),
            items=len(items.ids) + unknown["items"],
            users=len(users.ids) + unknown["users"],
        ),
        _dropped(events_dropped, unknown, is_allowed, core),
        int(repeats.sum()),
    )


def _by_reason(reasons: dict[str, Flags]) -> tuple[Flags, dict[str, int]]:
    """Return which events stay, and how many each reason drops that none before it does."""
    stays = np.ones(len(next(iter(reasons.values()))), bool)
    counts: dict[str, int] = {}
    for reason, applies in reasons.items():
        counts[reason] = int((stays & applies).sum())
        stays &= ~applies
    return stays, counts


def _dropped(
    events: dict[str, int], unknown: dict[str, int], is_allowed: Flags, core: Core
) -> dict[str, RowCounts]:
    items = {
        "unknown_items": unknown["items"],
        "keep_where": int((~is_allowed).sum()),
        "too_few_events": int((is_allowed & ~core.items).sum()),
    }
    users = {"unknown_users": unknown["users"], "too_few_events": int((~core.users).sum())}
    counts = {
        reason: RowCounts(events=num, items=items.get(reason, 0), users=users.get(reason, 0))
        for reason, num in events.items()
    }
    return {reason: each for reason, each in counts.items() if each != RowCounts()}


def _match(ids: pa.Array, entities: Entities) -> Array:
    """Return the entity row of each id of the interactions, -1 where there is none."""
    matched_rows = pc.index_in(ids, entities.ids)  # pyright: ignore[reportAttributeAccessIssue]
    return matched_rows.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)


def _refuse_unknown(rows: Array, entities: Entities, raw: RawEvents, codes: Array, policy: str) -> None:
    unknown = rows < 0
    if policy == "refuse" and unknown.any():
        first = int(np.argmax(unknown))
        ids = raw.item_ids if entities.entity == "item" else raw.user_ids
        file, row = raw.locate(first)
        raise DataError(
            f"the {entity_file(entities)} does not list this {entities.entity}; {int(unknown.sum())} events "
            f"name unknown {entities.entity}s",
            file=file,
            row=row,
            field=entities.entity,
            value=ids[int(codes[first])].as_py(),
            remedy=f'Add it, or leave such events out with filter.unknown_{entities.entity}s = "drop"',
        )


def entity_file(entities: Entities) -> str:
    """Return the file of items or users as errors call it."""
    return entities.origins[0][1] if entities.origins else f"list of {entities.entity}s"


def _allowed(items: Entities, keep_where: str | None) -> Flags:
    if keep_where is None:
        return np.ones(len(items.ids), bool)
    return as_flags(*items.column(keep_where))


def _select(events: Linked, stays: Flags) -> Linked:
    if stays.all():
        return events
    more = [None if column is None else column[stays] for column in events[2:]]
    return Linked(events.users[stays], events.items[stays], *more)


def _dense(remaining: Flags) -> Array:
    return (np.cumsum(remaining) - 1).astype(np.int32)


def _keep(entities: Entities, remaining: Flags) -> Kept:
    rows = np.flatnonzero(remaining)
    return Kept(entities.ids.take(pa.array(rows)), rows, entities)
