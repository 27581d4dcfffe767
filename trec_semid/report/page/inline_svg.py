"""Makes a figure of matplotlib's an element of the page.

Its colours become the page's CSS variables, so that a dark page has dark pictures; its texts take the page's
font; and what only a file of its own needs (identifiers, style sheet, metadata, addresses) goes, so that many
pictures can stand in one page and none reaches for anything outside it.
"""

import io
import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


class Hovered:
    """Words that stand under the pointer, by the identifier of what matplotlib draws with them."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}

    def name(self, words: str) -> str:
        """Return an identifier (matplotlib's `gid`) for something that is drawn."""
        name = f"hovered-{len(self.words)}"
        self.words[name] = words
        return name


def inline_svg(figure: "Figure", title: str, hovered: Hovered, css: str = "plot") -> Markup:
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
