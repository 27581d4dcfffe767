"""What answers requests from a bundle: its questions and answers. A server and a batch job know only this.

Legend: C candidates of a request, n items of a list.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from trec_semid.checkpoints.manifest import Manifest
from trec_semid.core.arrays import Float32s, Ints
from trec_semid.core.errors import ConfigError

Search = Literal["exact", "index", "beam"]
"""How a list is made: all items are scored, an index is asked, or a beam goes over codes."""


class NotServedError(ConfigError):
    """What a bundle cannot answer, and why."""


class Filters(NamedTuple):
    """Which items a list may hold; empty for all."""

    allowed: tuple[str, ...] | None = None
    """Item ids; None for all."""
    forbidden: tuple[str, ...] = ()
    fields: Mapping[str, tuple[str, ...]] = {}
    """Field name to values: an item must have one of the values of each named field."""


class RankAsked(NamedTuple):
    """Candidates of one user, to be given probabilities."""

    user: str | None
    history: tuple[str, ...] | None
    """Item ids, oldest first; None takes that of the bundle."""
    context: Mapping[str, str | float]
    """User field to value; those of a known user are the bundle's where not given."""
    candidates: tuple[str, ...]


class RankAnswer(NamedTuple):
    """Probabilities of one user's candidates."""

    scores: Float32s
    """(C,) in the order asked; NaN of an item that the bundle does not have."""
    basis: Literal["history", "stored", "unknown_user"]
    """What stands for the user: the history of the request, that of the bundle, or neither."""
    unknown: int
    """Ids that are not in the bundle."""


class RetrieveAsked(NamedTuple):
    """A list for one user."""

    user: str | None
    history: tuple[str, ...] | None
    """Item ids, oldest first; None takes that of the bundle."""
    n: int
    """Items of the list, at most."""
    filters: Filters = Filters()
    search: Search | None = None
    """None for the bundle's own."""


class RetrieveAnswer(NamedTuple):
    """The items that may be listed, best first; of equal scores the lower item row."""

    items: tuple[str, ...]
    """n ids, or all that may be listed where these are fewer."""
    scores: Float32s
    """(n,)."""
    basis: Literal["history", "stored", "popularity"]
    """What the list is made of: the history of the request, that of the bundle, or training counts."""
    unknown: int
    """Ids that are not in the bundle."""
    rows: Ints
    """(n,) rows of the items in the bundle."""


class AssignAsked(NamedTuple):
    """Content of an item that is not in the bundle."""

    contents: Mapping[str, tuple[float, ...]]
    """Modality to vector."""
    n: int
    """Nearest items to name."""


class AssignAnswer(NamedTuple):
    """What the tokenizer makes of content."""

    codes: tuple[int, ...]
    nearest: tuple[str, ...]
    """Ids of the items whose codes rebuild the most similar content, nearest first."""
    distances: Float32s
    """(n,) of these."""


class ItemFacts(NamedTuple):
    """What is known of an item."""

    item: str
    codes: tuple[int, ...]
    """Empty where the bundle has none."""
    neighbours: tuple[str, ...]
    """Ids of the items that share the most first codes, or whose vectors are nearest."""
    generation: str | None
    """Of the semantic IDs; None of a map that is none of a store's."""
    readable: Mapping[str, str]
    """Title and fields, for people."""


class Engine(Protocol):
    """Answers requests; a list of them is answered together."""

    version: str
    """First characters of the manifest's sha256: answers say by which bundle they are."""
    manifest: Manifest

    def rank(self, asked: Sequence[RankAsked]) -> list[RankAnswer]:
        """Return the probabilities of each request's candidates."""
        ...

    def retrieve(self, asked: Sequence[RetrieveAsked]) -> list[RetrieveAnswer]:
        """Return the list of each request."""
        ...

    def assign(self, asked: Sequence[AssignAsked]) -> list[AssignAnswer]:
        """Return the codes of each request's content."""
        ...

    def item(self, item: str) -> ItemFacts:
        """Return what is known of an item.

        Raises:
            DataError: the bundle does not have it.
        """
        ...

    def find(self, words: str, n: int) -> list[ItemFacts]:
        """Return the items whose readable text has all the words, at most n, best known first.

        Upper and lower case are one. Codes and neighbours may be left empty; where the bundle has no readable
        text there are none.
        """
        ...

    def examples(self, n: int) -> tuple[str, ...]:
        """Return ids of n items that the bundle has, or of all where these are fewer, best known first."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


def open_engine(uri: str, *, verify: bool = True, compiled: bool = False) -> Engine:
    """Open a bundle; its files are mapped, and nothing is decoded that is not asked for.

    Args:
        uri: of the bundle; one of an object store is copied first.
        verify: whether the content of every file is compared with the manifest, which reads all of it.
        compiled: whether machine code of the bundle is run where it is of this processor: only of bundles
            that are trusted like a program that one installs.

    Raises:
        DataError: no bundle, or one that is not what was exported.
    """
    from trec_semid.serving.opened import OpenBundle  # these know the engine, too
    from trec_semid.serving.ranking import RankEngine
    from trec_semid.serving.retrieving import RetrieveEngine

    bundle = OpenBundle(uri, verify=verify, compiled=compiled)
    return RankEngine(bundle) if bundle.manifest.ranker else RetrieveEngine(bundle)
