"""The contents of a report on a page and in Markdown alike: sections, and the parts that stand in them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from markupsafe import Markup

T = TypeVar("T")


class Cell(NamedTuple):
    """One cell: a main text, smaller lines under it, and a CSS class."""

    main: str
    lines: tuple[str, ...] = ()
    css: str = ""


class Column(NamedTuple):
    """A column's title, a hint under it, and whether it holds words instead of numbers."""

    title: str
    hint: str = ""
    is_text: bool = False


class Block(NamedTuple):
    """Rows that belong together, under a title where it is not empty."""

    title: str
    rows: list[list[Cell]]
    words: str = ""
    """What stands under the title."""


class Table(NamedTuple):
    """A table with its caption."""

    caption: str
    columns: list[Column]
    blocks: list[Block]


class Lead(NamedTuple):
    """The answer: sentences, the first of which is the one to remember."""

    sentences: Sequence[str]


class Heading(NamedTuple):
    """A title within a section."""

    title: str


class Words(NamedTuple):
    """A paragraph."""

    text: str
    is_note: bool = False


class Bullets(NamedTuple):
    """A list of sentences."""

    lines: Sequence[str]


class Facts(NamedTuple):
    """Short facts: (term, text)."""

    pairs: Sequence[tuple[str, str]]


class Terms(NamedTuple):
    """Words and what they mean: (term, text)."""

    pairs: Sequence[tuple[str, str]]


class Legend(NamedTuple):
    """Whose mark and colour is whose: (series, name)."""

    label: str
    marks: Sequence[tuple[int, str]]


class Figure(NamedTuple):
    """A picture with its caption."""

    picture: Markup
    title: str
    words: str = ""


class Figures(NamedTuple):
    """Pictures side by side; Markdown leaves them out, since every picture has a table."""

    figures: Sequence[Figure]
    are_tiny: bool = False


class Source(NamedTuple):
    """Text as it is, with its own line breaks."""

    text: str
    label: str
    wraps: bool = False


class Folded(NamedTuple):
    """Parts that a reader has to open."""

    summary: str
    parts: Sequence["Part"]


Part = Lead | Heading | Words | Bullets | Facts | Terms | Legend | Figures | Source | Folded | Table


class Section(NamedTuple):
    """A part of the report that the contents lead to."""

    anchor: str
    title: str
    parts: Sequence[Part]


def figures(*given: tuple[Markup | None, str, str], are_tiny: bool = False) -> list[Part]:
    """Return the pictures that there is something to draw for, (picture, title, words) each, as one part."""
    drawn = [Figure(picture, title, words) for picture, title, words in given if picture is not None]
    return [Figures(drawn, are_tiny)] if drawn else []


def grouped(pairs: Iterable[tuple[str, T]]) -> list[tuple[str, list[T]]]:
    """Return values by key, keys and values in the order in which they came."""
    groups: dict[str, list[T]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return list(groups.items())
