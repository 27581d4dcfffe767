"""Own data: Parquet, CSV, TSV or JSON-lines with columns mapped in the config."""

from typing import Literal

from trec_semid.core.config import Config
from trec_semid.data.raw.entities import Entities, Entity, collect_entities
from trec_semid.data.raw.events import EventColumns, collect_events
from trec_semid.data.raw.formats.chunks import FileConfig
from trec_semid.data.raw.formats.streams import read_chunks
from trec_semid.data.sources.source import Needs, Source


class InteractionsFile(FileConfig, EventColumns):
    """Where the interactions are and which column means what."""


class EntityFile(FileConfig):
    """Where items or users are."""

    id: str
    """Column of their id."""


class OwnFilesConfig(Config):
    """Interactions, and where they exist items and users."""

    kind: Literal["tables"] = "tables"
    interactions: InteractionsFile
    items: EntityFile | None = None
    """Without it the catalogue is what the interactions name."""
    users: EntityFile | None = None

    def event_columns(self) -> EventColumns:
        """Return the mapping of the interactions."""
        return self.interactions

    def inputs(self) -> list[str]:
        """Return the files, folders and patterns it reads."""
        return [table.path for table in (self.interactions, self.items, self.users) if table]


def read_own_files(config: OwnFilesConfig, needs: Needs) -> Source:
    """Read the tables.

    Raises:
        DataError: a file or a value that cannot be used.
    """
    items = _read_entities(config.items, needs.item_columns, "item")
    users = _read_entities(config.users, needs.user_columns, "user")
    columns = config.interactions
    named = [name for name in (columns.user, columns.item, columns.behaviour) if name]
    chunks = read_chunks(columns, columns.names(), work="interactions", repeating=named)
    events = collect_events(chunks, columns)
    return Source(items, users, events)


def _read_entities(config: EntityFile | None, columns: list[str], entity: Entity) -> Entities | None:
    if config is None:
        return None
    needed_columns = [config.id, *columns]
    return collect_entities(read_chunks(config, needed_columns, work=f"{entity}s"), config.id, entity)
