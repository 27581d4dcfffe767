"""What a source gives, and what is asked of it."""

from typing import NamedTuple

from trec_semid.data.raw.entities import Entities
from trec_semid.data.raw.events import RawEvents


class Needs(NamedTuple):
    """Columns that the config uses beside the ids; a source may give more."""

    item_columns: list[str]
    user_columns: list[str]


class Source(NamedTuple):
    """Raw data, checked value by value but not yet linked."""

    items: Entities | None
    """None where the catalogue is what the interactions name."""
    users: Entities | None
    """None where users are known by their interactions only."""
    events: RawEvents
