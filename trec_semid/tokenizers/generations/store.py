"""A store: `store.json`, a history of small files of which the newest counts, and a folder a generation.

    store.json                    which store this is
    history/entry-00000007.json   what was done seventh, and what holds since then: written once
    generation-4/                 written once; nobody reads it before an entry of the history names it

Entry n + 1 is created only where there is none, by the process that read entry n. So of two that publish at
once one fails, on a disk (a hard link) and on object stores (a conditional write) alike, and everyone else
sees the store as it was before or as it is after. The protocol is that of Delta Lake's log (Armbrust and
others, "Delta Lake: High-Performance ACID Table Storage over Cloud Object Stores", VLDB 2020, section 3.2),
with a whole state in each entry in place of checkpoints of the log.
"""

import re
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, ValidationError

from trec_semid.core.config import Config
from trec_semid.core.errors import DataError, LockError
from trec_semid.core.paths import exists, join, list_folder, make_folder, read_bytes, remove
from trec_semid.runtime.fingerprints import read_signed, signed_json
from trec_semid.runtime.runs import command_line
from trec_semid.tokenizers.generations.create import create_bytes
from trec_semid.tokenizers.generations.manifest import Generation, read_generation

STORE, HISTORY = "store.json", "history"
_ENTRY = re.compile(r"entry-(\d{8})\.json")
_FOLDER = re.compile(r"generation-(\d+)")
_NAMED = re.compile(r"(?P<store>.+)@(?P<number>\d+)")
_INSIDE = re.compile(r"(?P<store>.+)/generation-(?P<number>\d+)")
Action = Literal["create", "begin", "publish", "rollback", "collect"]


class Entry(Config):
    """What was done, and what holds since then."""

    schema_version: Literal[1] = 1
    sequence: NonNegativeInt
    action: Action
    number: NonNegativeInt
    """The generation that it is about; 0 where it is about none or several."""
    current: PositiveInt | None
    """The generation that is read where no number is named."""
    highest: NonNegativeInt
    """The highest number that was ever given out."""
    published: tuple[PositiveInt, ...]
    """Generations that can be read."""
    at: str
    """UTC."""
    command: str
    note: str = ""
    token: str = ""
    """Tells apart entries of one command in one second; none in entries of earlier versions."""


@dataclass(frozen=True)
class Store:
    """A store that is there; everything is read anew when it is asked for."""

    uri: str
    id: str

    def folder(self, number: int) -> str:
        """Return where a generation lies."""
        return join(self.uri, f"generation-{number}")

    def newest(self) -> Entry:
        """Return what holds now.

        Raises:
            DataError: the newest entry is damaged.
        """
        names = self._entries()
        return self._read(names[-1]) if names else nothing_done()

    def history(self) -> list[Entry]:
        """Return all entries, the oldest first.

        Raises:
            DataError: one is damaged.
        """
        return [self._read(name) for name in self._entries()]

    def advance(self, before: Entry, action: Action, number: int, **changes: Any) -> Entry:
        """Add an entry, where `before` is still the newest.

        Args:
            before: what held when the caller began.
            action: what is done.
            number: the generation that it is about.
            changes: fields that have other values now.

        Raises:
            LockError: another process was faster; nothing has changed.
        """
        done = {"sequence": before.sequence + 1, "action": action, "number": number}
        said = {"at": utc_now(), "command": command_line(), "note": "", "token": uuid.uuid4().hex}
        entry = Entry.model_validate({**before.model_dump(), **said, **done, **changes})
        place = join(self.uri, HISTORY, f"entry-{entry.sequence:08d}.json")
        try:
            create_bytes(place, signed_json(entry.model_dump(mode="json")))
        except FileExistsError:
            raise self.overtaken() from None
        return entry

    def overtaken(self) -> LockError:
        """Return the refusal of one that another process, named by the newest entry, was faster than."""
        other = self.newest()
        what = f"{other.action} of generation {other.number}" if other.number else other.note or other.action
        return LockError(
            f"{self.uri}: another process was faster ({what}, {other.at}: {other.command}). Nothing was "
            "changed by this one. Look at it, and run again."
        )

    def generation(self, number: int) -> Generation:
        """Return a generation that was published.

        Raises:
            DataError: there is none of that number, it was collected, or its description is damaged.
        """
        newest = self.newest()
        if number not in newest.published:
            have = ", ".join(map(str, newest.published)) or "none"
            gone = "it was collected, or never published" if number <= newest.highest else "not that many"
            remedy = f"There are: {have}. Name one of these"
            raise DataError(f"no such generation ({gone})", file=self.uri, value=number, remedy=remedy)
        return read_generation(self.folder(number))

    def published(self) -> list[Generation]:
        """Return all generations that can be read, in the order of their numbers.

        Raises:
            DataError: the description of one is damaged.
        """
        return [read_generation(self.folder(number)) for number in self.newest().published]

    def current(self) -> Generation:
        """Return the current generation.

        Raises:
            DataError: none was published, or its description is damaged.
        """
        number = self.newest().current
        if number is None:
            remedy = "Publish one: trec-semid generations publish STORE RUN"
            raise DataError("a store without generations", file=self.uri, remedy=remedy)
        return read_generation(self.folder(number))

    def folders(self) -> list[int]:
        """Return the numbers of all folders of generations, published or not."""
        matches = (_FOLDER.fullmatch(name) for name in list_folder(self.uri))
        return sorted(int(match[1]) for match in matches if match)

    def _entries(self) -> list[str]:
        return sorted(name for name in list_folder(join(self.uri, HISTORY)) if _ENTRY.fullmatch(name))

    def _read(self, name: str) -> Entry:
        place = join(self.uri, HISTORY, name)
        try:
            return Entry.model_validate(read_signed(read_bytes(place)))
        except (ValidationError, ValueError) as error:
            remedy = "Remove this entry: the one before it counts then"
            raise DataError(f"damaged: {str(error).splitlines()[0]}", file=place, remedy=remedy) from None


def is_store(uri: str) -> bool:
    """Return whether a store lies there."""
    return exists(join(uri, STORE))


def open_store(uri: str) -> Store:
    """Open a store.

    Raises:
        DataError: there is none, or its `store.json` is damaged.
    """
    place = join(uri, STORE)
    try:
        return Store(uri.rstrip("/"), str(read_signed(read_bytes(place))["store"]))
    except FileNotFoundError:
        remedy = "Make one with: trec-semid generations publish STORE RUN"
        raise DataError("no store of semantic IDs here", file=place, remedy=remedy) from None
    except (ValueError, KeyError) as error:
        remedy = "Copy it again, or publish into another place"
        raise DataError(f"damaged: {error}", file=place, remedy=remedy) from None


def open_or_create(uri: str) -> Store:
    """Open a store, or make an empty one where there is none.

    Raises:
        DataError: the disk cannot hold one; nothing is left there.
    """
    is_new = not exists(uri)
    make_folder(join(uri, HISTORY))
    try:
        with suppress(FileExistsError):
            create_bytes(join(uri, STORE), signed_json({"schema_version": 1, "store": uuid.uuid4().hex}))
    except DataError:
        remove(uri if is_new else join(uri, HISTORY))
        raise
    return open_store(uri)


def resolve(place: str) -> str:
    """Return the folder that a place of semantic IDs names.

    `store` is its current generation, `store@7` the seventh; any other place is itself.

    Raises:
        DataError: there is no such generation.
    """
    if is_store(place):
        store = open_store(place)
        return store.folder(store.current().number)
    named = _NAMED.fullmatch(place.rstrip("/"))
    inside = _INSIDE.fullmatch(place.rstrip("/"))
    if named and not exists(place):
        store = open_store(named["store"])
        return store.folder(store.generation(int(named["number"])).number)
    if inside and is_store(inside["store"]):
        open_store(inside["store"]).generation(int(inside["number"]))
    return place


def split_number(place: str) -> tuple[str, int | None]:
    """Return a store and the number that a place names in it: `store@7` is ("store", 7)."""
    named = _NAMED.fullmatch(place.rstrip("/"))
    return (named["store"], int(named["number"])) if named and not exists(place) else (place, None)


def utc_now() -> str:
    """Return the time, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def nothing_done() -> Entry:
    """Return what holds in a store of which nothing was published yet."""
    return Entry(
        sequence=0, action="create", number=0, current=None, highest=0, published=(), at="", command=""
    )
