"""What a report is made of on a page and in Markdown alike: sections, and the parts that stand in them."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from trec_semid.report.tables import Table


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
