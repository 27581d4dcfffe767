"""Interactions, items and users joined: unknown ids decided about, the filter applied, dense rows."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trec_semid.core.errors import DataError
from trec_semid.core.logs import working
from trec_semid.data.filters import FilterConfig, k_core
from trec_semid.data.raw.columns import as_flags
from trec_semid.data.raw.entities import Entities, named_entities, with_unknown
from trec_semid.data.raw.events import RawEvents
from trec_semid.data.sources.source import Source

Array = np.ndarray[Any, Any]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
Rows = np.ndarray[Any, np.dtype[np.int64]]


class Kept(NamedTuple):
    """The items or users of the dataset, N of them."""

    ids: pa.Array
    """(N,) text, in row order."""
    rows: Rows
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
    """(n,) int64 [microseconds]."""
    positions: Array | None
    """(n,) int64."""
    behaviours: Array | None
    """(n,) int32."""


class Links(NamedTuple):
    """The joined data."""

    events: Linked
    items: Kept
    users: Kept
    counts: dict[str, int]
    """What was there, and what was dropped why."""


def link(source: Source, labels: Array | None, config: FilterConfig, keep_where: str | None) -> Links:
    """Join, filter and count densely; items and users keep the order of the source.

    Args:
        source: raw data.
        labels: label of every raw event.
        config: the filter.
        keep_where: item column; only items where it is true stay.

    Raises:
        DataError: an event names an unknown item or user and the filter refuses that, or nothing is left.
    """
    raw = source.events
    items = source.items or named_entities(raw.item_ids, "item")
    users = source.users or named_entities(raw.user_ids, "user")
    if config.unknown_users == "keep":
        users = with_unknown(users, raw.user_ids)
    event_items = _match(raw.item_ids, items)[raw.items]
    event_users = _match(raw.user_ids, users)[raw.users]
    counts = {"events": len(raw.users), "items": len(items.ids), "users": len(users.ids)}
    counts |= {
        "events_on_unknown_items": _unknown(event_items, items, raw, raw.items, config.unknown_items),
        "events_of_unknown_users": _unknown(event_users, users, raw, raw.users, config.unknown_users),
    }
    wanted = _wanted(items, keep_where)
    counts["items_left_out"] = int((~wanted).sum())
    stays = (event_items >= 0) & (event_users >= 0) & wanted[event_items]
    events = Linked(event_users, event_items, labels, raw.times, raw.positions, raw.behaviours)
    events = _select(events, stays)
    with working("k-core"):
        core = k_core(events.users, events.items, len(users.ids), len(items.ids), config, raw.file)
    events = _select(events, core.events)
    counts["events_kept"] = len(events.users)
    items_kept, users_kept = core.items & wanted, core.users
    events = events._replace(users=_dense(users_kept)[events.users], items=_dense(items_kept)[events.items])
    return Links(events, _keep(items, items_kept), _keep(users, users_kept), counts)


def _match(ids: pa.Array, entities: Entities) -> Array:
    """Return the entity row of each id of the interactions, -1 where there is none."""
    found = pc.index_in(ids, entities.ids)  # pyright: ignore[reportAttributeAccessIssue]
    return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)


def _unknown(rows: Array, entities: Entities, raw: RawEvents, codes: Array, policy: str) -> int:
    """Return how many events name an unknown entity, unless that is refused."""
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
    return int(unknown.sum())


def entity_file(entities: Entities) -> str:
    """Return the file of items or users as errors call it."""
    return entities.origins[0][1] if entities.origins else f"list of {entities.entity}s"


def _wanted(items: Entities, keep_where: str | None) -> Flags:
    if keep_where is None:
        return np.ones(len(items.ids), bool)
    return as_flags(*items.column(keep_where))


def _select(events: Linked, stays: Flags) -> Linked:
    if stays.all():
        return events
    more = [None if column is None else column[stays] for column in events[2:]]
    return Linked(events.users[stays], events.items[stays], *more)


def _dense(kept: Flags) -> Array:
    return (np.cumsum(kept) - 1).astype(np.int32)


def _keep(entities: Entities, kept: Flags) -> Kept:
    rows = np.flatnonzero(kept)
    return Kept(entities.ids.take(pa.array(rows)), rows, entities)
