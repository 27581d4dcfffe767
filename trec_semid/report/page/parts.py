"""The contents of a report on a page and in Markdown alike: sections, and the parts that stand in them.

A figure of matplotlib's becomes an element of the page: its colours become the page's CSS variables, so that
a dark page has dark pictures; its texts take the page's font; and what only a file of its own needs
(identifiers, style sheet, metadata, addresses) goes, so that many pictures can stand in one page and none
reaches for anything outside it.
"""

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from markupsafe import Markup

if TYPE_CHECKING:
    import matplotlib.figure

T = TypeVar("T")
COLOURS = {
    "paper": "#ffffff",
    "ink": "#1a2027",
    "soft": "#55606c",
    "grid": "#e6ebf0",
    "bars": "#7f94aa",
    "c0": "#596573",
    "c1": "#0b66c3",
    "c2": "#c4470c",
    "c3": "#0a8062",
    "c4": "#8e3bb0",
    "c5": "#94700a",
    "c6": "#c22058",
    "c7": "#56661a",
}
"""CSS variables of the page and what they are on a light one; `c0` .. `c7` are the colours of series."""
_VARIABLES = {value: f"var(--{name}, {value})" for name, value in COLOURS.items()}
_COLOUR = re.compile("#[0-9a-f]{6}")
_NUMBER = re.compile(r"-?\d+\.\d+")
_SHAPES = {"d", "x", "y", "width", "height", "transform"}


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


class Hovered:
    """Words that stand under the pointer, by the identifier of what matplotlib draws with them."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}

    def name(self, words: str) -> str:
        """Return an identifier (matplotlib's `gid`) for something that is drawn."""
        name = f"hovered-{len(self.words)}"
        self.words[name] = words
        return name


def inline_svg(figure: "matplotlib.figure.Figure", title: str, hovered: Hovered, css: str = "plot") -> Markup:
    """Return a picture as an element of a page.

    Args:
        figure: the picture.
        title: what a screen reader says; empty = the picture is not spoken of.
        hovered: words under the pointer.
        css: class of the element.
    """
    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    root = ET.fromstring(written.getvalue())  # noqa: S314 - written by matplotlib just now
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    shapes = {path.get("id"): path for defs in root.iter("defs") for path in defs.iter("path")}
    body = [part for child in root for part in _cleaned(child, shapes, hovered)]
    names = {"role": "img", "aria-label": title} if title else {"aria-hidden": "true"}
    kind = {"class": css} if css else {}
    page = ET.Element("svg", {**kind, "viewBox": root.get("viewBox", ""), **names})
    page.extend(body)
    # ElementTree escaped every text and attribute, so the whole may stand in a page.
    return Markup(ET.tostring(page, encoding="unicode", short_empty_elements=True))  # noqa: S704


def _cleaned(element: ET.Element, shapes: dict[str | None, ET.Element], hovered: Hovered) -> list[ET.Element]:
    """Return what of an element stands in the page.

    Groups without words dissolve. Marks, which matplotlib draws once and refers to, are drawn each.
    """
    if element.tag in ("metadata", "defs"):
        return []
    inside = [part for child in element for part in _cleaned(child, shapes, hovered)]
    if element.tag == "g":
        words = hovered.words.get(element.get("id", ""))
        if not words or not inside:
            return inside
        group = ET.Element("g")
        ET.SubElement(group, "title").text = words
        group.extend(inside)
        return [group]
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    if element.tag == "use":
        mark, place = shapes[attributes["href"][1:]], f"translate({attributes['x']} {attributes['y']})"
        attributes = {"d": mark.get("d", ""), "transform": place, "style": attributes["style"]}
    is_text = element.tag == "text"
    shown = ET.Element("text" if is_text else "path")
    for name, value in attributes.items():
        if name == "style":
            shown.set(name, _style(value, is_text=is_text))
        elif name in _SHAPES and not (is_text and name == "transform"):
            shown.set(name, " ".join(_NUMBER.sub(_rounded, value).split()))
    shown.text = element.text if is_text else None
    return [shown]


def _style(style: str, *, is_text: bool) -> str:
    """Return a style with the page's colours and, of texts, without the font: they take the page's."""
    rules = [rule.strip() for rule in style.split(";")]
    shown = [rule for rule in rules if not (is_text and rule.startswith("font-family"))]
    return _COLOUR.sub(lambda colour: _VARIABLES.get(colour[0], colour[0]), "; ".join(shown))


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
