"""A bundle that is open: its manifest, its ids, and its files mapped into memory.

Legend: n ids, B requests.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, final

import numpy as np

from trec_semid.checkpoints.bundle_files import manifest_version, verify_bundle
from trec_semid.checkpoints.manifest import FieldFacts, Manifest, ProgramFacts
from trec_semid.core.arrays import Array, Ints
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, local_copy
from trec_semid.data.ragged import Ragged
from trec_semid.serving.programs import read_program
from trec_semid.serving.reader import BundleError, IdMap, Reader, map_tensors


class Histories(NamedTuple):
    """Item rows that requests are answered by, oldest first."""

    values: Ints
    """(sum of lengths,)."""
    lengths: Ints
    """(B,)."""
    unknown: Ints
    """(B,) ids that are not in the bundle."""


@final
class OpenBundle:
    """Files of a bundle, found by what they are."""

    def __init__(self, uri: str, *, verify: bool, compiled: bool = False) -> None:
        """Open a bundle; one of an object store is copied first.

        Args:
            uri: of the bundle.
            verify: whether the content of every file is compared with the manifest, and not sizes alone.
            compiled: as of `serving.programs.read_program`.

        Raises:
            DataError: no bundle, or one that is not what was exported.
        """
        self.uri, self._held, self._compiled = uri, ExitStack(), compiled
        self.manifest: Manifest = verify_bundle(uri, reads_all=verify)
        self.version = manifest_version(uri)
        self.folder = self._held.enter_context(local_copy(uri))
        with refusing(uri):
            self.reader = Reader(self.folder)
            if verify:
                for ids in (self.items, self.users):
                    ids.ids.validate(full=True)  # Arrow trusts what files say of their text
        self._fields: dict[tuple[str, str], Field] = {}

    @property
    def items(self) -> IdMap:
        """Ids of items."""
        return self.reader.items

    @property
    def users(self) -> IdMap:
        """Ids of users."""
        return self.reader.users

    def program(self, facts: ProgramFacts) -> Callable[..., Any]:
        """Return what calls a program, with (...) inputs in their order.

        Raises:
            DataError: it is not the one that was exported, or an archive that no export writes.
        """
        return read_program(self.folder, facts, compiled=self._compiled)

    def arrays(self, file: str) -> dict[str, Array]:
        """Return the (...) arrays of a file."""
        with refusing(self.uri):
            return map_tensors(join(self.folder, file))

    def field(self, entity: str, name: str) -> "Field":
        """Return a side field.

        Raises:
            DataError: there is none of this name.
        """
        if (entity, name) not in self._fields:
            facts = [each for each in self.manifest.fields if (each.entity, each.name) == (entity, name)]
            if not facts:
                have = [each.name for each in self.manifest.fields if each.entity == entity]
                remedy = f"There are: {', '.join(have) or 'none'}"
                raise DataError(f"no {entity} field of this name", field=name, remedy=remedy)
            with refusing(self.uri):
                values, column = self.reader.field(entity, name)
            self._fields[entity, name] = Field(facts[0], values, _with_lengths(column.offsets, column.values))
        return self._fields[entity, name]

    def histories(self, given: Sequence[tuple[str, ...] | None], users: Ints, most: int | None) -> Histories:
        """Return the histories of B requests: as given, else as stored of (B,) user rows, else none.

        Args:
            given: item ids, oldest first; None where a request has none.
            users: (B,) user rows, -1 of an unknown one.
            most: items of a history, the last ones.
        """
        flat = [item for items in given if items is not None for item in items]
        rows, at = self.items.rows_of(flat), 0
        parts: list[Array] = []
        unknown = np.zeros(len(given), np.int64)
        stored = self.reader.histories
        for number, items in enumerate(given):
            own: Array = np.zeros(0, np.int64)
            if items is not None:
                own, at = rows[at : at + len(items)], at + len(items)
                unknown[number] = int((own < 0).sum())
                own = own[own >= 0]
            elif users[number] >= 0 and stored is not None:
                own = np.asarray(stored.of(int(users[number]), most), np.int64)
            parts.append(own if most is None else own[len(own) - min(most, len(own)) :])
        lengths = np.array([len(part) for part in parts], np.int64)
        values = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        if len(values) and (values.min() < 0 or values.max() >= len(self.items)):
            raise DataError("an item row that is none", file=self.uri, field="histories")
        return Histories(values, lengths, unknown)

    def user_rows(self, users: Sequence[str | None]) -> Ints:
        """Return (B,) rows of users; -1 of unknown ones and of none."""
        named = [at for at, user in enumerate(users) if user is not None]
        rows = np.full(len(users), -1, np.int64)
        rows[named] = self.users.rows_of([users[at] or "" for at in named])
        return rows

    def close(self) -> None:
        """Let go of a copy of the files."""
        self._held.close()


class Field(NamedTuple):
    """A side field of users or items."""

    facts: FieldFacts
    values: IdMap
    column: Ragged
    """Numbers by row of the entity."""

    def number_of(self, value: str | float) -> int:
        """Return the number that stands for a value; 0, as of what is missing, where it is unknown.

        Raises:
            DataError: text where numbers are, or the other way round.
        """
        if self.facts.edges is not None:
            if isinstance(value, str):
                raise DataError("a number is expected", field=self.facts.name, value=value)
            return 0 if np.isnan(value) else 1 + int(np.searchsorted(self.facts.edges, value, side="right"))
        if not isinstance(value, str):
            raise DataError("text is expected", field=self.facts.name, value=value)
        return 1 + int(self.values.rows_of([value])[0])

    def numbers_of(self, values: Sequence[str]) -> Ints:
        """Return (n,) the numbers of values; 0 of unknown ones."""
        return 1 + self.values.rows_of(values)


def context_of(bundle: OpenBundle, context: Mapping[str, str | float]) -> dict[str, int]:
    """Return the numbers of the user fields that a request gives.

    Raises:
        DataError: names the place in the request of what cannot be used.
    """
    numbers: dict[str, int] = {}
    for name, value in context.items():
        with at_place(f"context.{name}"):
            numbers[name] = bundle.field("user", name).number_of(value)
    return numbers


@contextmanager
def at_place(path: str) -> Iterator[None]:
    """Say of what is wrong with a request where it stands there."""
    try:
        yield
    except DataError as error:
        if error.file is not None:  # a fault of the bundle
            raise
        raise DataError(error.problem, field=path, value=error.value, remedy=error.remedy) from None


@contextmanager
def refusing(uri: str) -> Iterator[None]:
    """Word what a file that is none makes of reading.

    Raises:
        DataError: says what is wrong.
    """
    try:
        yield
    except (BundleError, OSError, KeyError, ValueError) as error:
        remedy = "Copy or export it again"
        raise DataError(f"not what was exported: {error}", file=uri, remedy=remedy) from None


def _with_lengths(offsets: Array, values: Array) -> Ragged:
    return Ragged(np.asarray(offsets[:-1]), np.diff(offsets), values)
