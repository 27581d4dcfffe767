"""`generation.json`: what a generation is, which one it was appended to, and whose models can read it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, ValidationError

from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.core.paths import exists, join, list_folder, read_bytes
from trec_semid.runtime.fingerprints import Fingerprint, fingerprint, read_signed, signed_json
from trec_semid.tokenizers.maps.origin import Origin

GENERATION = "generation.json"
"""Written last: without it nobody takes the folder for a generation."""
Kind = Literal["retrain", "append"]
Collisions = Literal["keep", "slots", "refuse"]


class Change(Config):
    """How a generation differs from the one that was current before it, in items."""

    added: NonNegativeInt
    """In this one only; those that came back count too."""
    returned: NonNegativeInt = 0
    """Of these, items that had been removed and have their own tuple again."""
    moved: NonNegativeInt
    """In both, with another tuple."""
    removed: NonNegativeInt
    """In the other one only."""
    drift: tuple[float, ...] | None
    """Share of the items of both with another code, by position; None where tuples have other lengths."""


class ReadGeneration(Config):
    """What a run says of the generation that it read."""

    store: str
    """The store's own id: places move."""
    place: str
    """Folder of the generation, when it was read."""
    number: PositiveInt
    tokenizer: str | None
    codebooks: str


class Generation(Config):
    """A generation: written once, never changed."""

    schema_version: Literal[1] = 1
    store: str
    number: PositiveInt
    kind: Kind
    parent: PositiveInt | None
    """The generation that was current before; None of the first."""
    lineage: tuple[PositiveInt, ...]
    """Those that it was appended to, oldest first; none of a retrained one."""
    readable_from: PositiveInt
    """The oldest one, of the lineage and itself, whose models can read this: since then, nothing but
    additions."""
    tokenizer: str | None
    """`tokenizer_checksum`; None where only a map was published."""
    codebooks: str
    """`codebooks_checksum`."""
    sizes: tuple[PositiveInt, ...]
    """Codebook size of each position."""
    collisions: Collisions
    """What happens to a new item whose tuple is taken: nothing; it takes a free code of the last position,
    `sizes[-1]` of which there are; or the whole generation is refused."""
    items: NonNegativeInt
    tombstones: NonNegativeInt
    """Removed items, whose tuples stay taken."""
    change: Change
    origin: Origin | None
    """What the lineage's first generation was computed from."""
    source: str
    """Where its codes come from, as a person named it."""
    source_checksum: str
    """Tells whether the same was published already."""
    created: str
    """UTC."""
    command: str
    commit: str
    note: str = ""
    files: dict[str, Fingerprint]
    """By path in the folder; those of map and tokenizer stand in `codes.json`, which is one of these."""

    @property
    def root(self) -> int:
        """The lineage's first generation."""
        return self.lineage[0] if self.lineage else self.number

    def as_read(self, place: str) -> ReadGeneration:
        """Return what a run says of this generation that lies in a folder."""
        return ReadGeneration(
            store=self.store,
            place=place,
            number=self.number,
            tokenizer=self.tokenizer,
            codebooks=self.codebooks,
        )

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        return signed_json(self.model_dump(mode="json"))


def read_generation(folder: str) -> Generation:
    """Read a generation's own description.

    Raises:
        DataError: there is none, or it is damaged.
    """
    place = join(folder, GENERATION)
    remedy = "Roll back to another one: trec-semid generations rollback STORE NUMBER"
    try:
        return Generation.model_validate(read_signed(read_bytes(place)))
    except FileNotFoundError:
        raise DataError("no generation here: no such file", file=place, remedy=remedy) from None
    except (ValidationError, ValueError) as error:
        raise DataError(f"damaged: {str(error).splitlines()[0]}", file=place, remedy=remedy) from None


def read_before(said: Mapping[str, Any]) -> ReadGeneration | None:
    """Return the generation that a run's `run.json` names; None where it read none.

    Raises:
        DataError: what it says cannot be read.
    """
    named = said.get("generation")
    try:
        return None if named is None else ReadGeneration.model_validate(named)
    except ValidationError as error:
        told = str(error).splitlines()[0]
        raise DataError(f"damaged: {told}", field="generation", remedy="Copy run.json again") from None


def generation_of(folder: str) -> Generation | None:
    """Return the generation that a folder is; None of any other folder.

    Raises:
        DataError: it is one, and damaged.
    """
    return read_generation(folder) if exists(join(folder, GENERATION)) else None


def reading_fault(read: ReadGeneration, now: Generation) -> str | None:
    """Return why a model that read one generation cannot read another; None where it can.

    It can where tokenizer and codebooks are the same and nothing but additions lies between: every item
    that it knows has the tuple that it had.

    Args:
        read: what its run says.
        now: the generation that it is to read.
    """
    if now.store != read.store:
        return "it is of another store"
    if (now.tokenizer, now.codebooks) != (read.tokenizer, read.codebooks):
        return "it has another tokenizer or other codebooks"
    if read.number not in (*now.lineage, now.number):
        return f"it was not appended to generation {read.number}: items may have other tuples, or none"
    if read.number < now.readable_from:
        return f"items were removed since generation {read.number}"
    return None


def refusal(read: ReadGeneration, now: Generation) -> str | None:
    """Return `reading_fault` as a whole sentence that says what to do; None where the model can read it."""
    fault = reading_fault(read, now)
    return fault and (
        f"trained on generation {read.number} ({read.place}), which generation {now.number} cannot stand "
        f"for: {fault}. Set semantic_ids = '{read.place}', or train on generation {now.number}."
    )


def tokenizer_checksum(folder: str) -> str | None:
    """Return a sha256 over the files of a saved tokenizer, by name; None where there is no such folder."""
    names = [name for name in list_folder(folder) if ".partial-" not in name]
    files = {name: fingerprint(join(folder, name)).sha256 for name in names}
    return checksum_of(files) if files else None


def codebooks_checksum(sizes: Sequence[int], tokenizer: str | None) -> str:
    """Return a sha256 of what codes mean: the (R,) sizes of codebooks, and the tokenizer that has them."""
    return checksum_of([list(sizes), tokenizer])


def checksum_of(content: object) -> str:
    """Return a sha256 of anything that JSON can say; the order of keys says nothing."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
