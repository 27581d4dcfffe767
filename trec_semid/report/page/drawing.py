"""The report's three kinds of pictures, drawn by matplotlib: dots with intervals, curves, and codebook usage.

Pictures are 360 units wide, so that their letters can be read on a phone; a unit is a point of matplotlib's.
matplotlib is imported when the first picture is drawn: it takes longer to load than any other verb may.
"""

import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from markupsafe import Markup

from trec_semid.report.page.parts import COLOURS, Hovered, inline_svg
from trec_semid.report.words import short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_COLOURS = 8
MARKS = ("o", "s", "^", "D", "P")
"""Marks of series by turns: with 5 marks and 8 colours the first 40 series look different."""
LOOK: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: selected, searched and read aloud
    "svg.hashsalt": "trec-semid",
    "text.parse_math": False,  # a `$` in the name of an arm is a dollar
    "font.size": 12,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["soft"],
    "axes.labelcolor": COLOURS["soft"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 1,
    "axes.axisbelow": True,
    "path.simplify": False,
}
WIDTH = 360
TINY_WIDTH = 180
MARGIN = 24
"""Air left and right of a scale: half of a number stands beyond its end."""
LINE_HEIGHT = 15
DOT_STEP = 13
"""Distance of the dots of a row."""
NOTE_WIDTH = 122
"""What a row keeps free for a note: 'not distinguishable' at this size of letters."""
MAX_LINES = 3
"""Lines that a row's label may have before its middle is left out."""
MAX_BARS = 96
"""Usage pictures of larger codebooks show means of neighbouring codes."""


class Dot(NamedTuple):
    """A value with its interval."""

    series: int
    value: float
    low: float
    high: float
    told: str
    """What stands under the pointer."""


class Row(NamedTuple):
    """A labelled row of dots."""

    label: str
    note: str
    dots: list[Dot]


class Curve(NamedTuple):
    """A line through (x, y) points, and those of them that deserve a mark."""

    series: int
    xs: Sequence[float]
    ys: Sequence[float]
    told: str
    marks: Sequence[tuple[float, float]] = ()


def draw_dots(rows: Sequence[Row], title: str, axis_title: str, *, line_at: float | None = None) -> Markup:
    """Draw rows of dots with interval whiskers over a common scale.

    Args:
        rows: from top to bottom; each row's dots stand under each other so that whiskers never overlap.
        title: what a screen reader says.
        axis_title: words under the scale; one short line.
        line_at: where a reference line stands, such as 0 for differences.
    """
    with look():
        labels = [wrap_label(row.label, _label_width(rows)) for row in rows]
        heights = [
            LINE_HEIGHT * len(lines) + DOT_STEP * len(row.dots) + 13
            for row, lines in zip(rows, labels, strict=True)
        ]
        figure, axes = frame(sum(heights) + 54, left=MARGIN)
        axes.set_ylim(sum(heights), 0)  # from the top, one unit of the picture each
        axes.yaxis.set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel(axis_title, labelpad=6)
        ends = [end for row in rows for dot in row.dots for end in (dot.low, dot.high)]
        set_scale(axes, "x", ends if line_at is None else [*ends, line_at])
        if line_at is not None:
            axes.axvline(line_at, color=COLOURS["soft"], linewidth=1, dashes=(4, 3), clip_on=False, zorder=1)
        hovered = Hovered()
        top = 0.0
        for row, lines, height in zip(rows, labels, heights, strict=True):
            _write_row(axes, row, lines, top)
            for index, dot in enumerate(row.dots):
                y = top + LINE_HEIGHT * len(lines) + 8 + DOT_STEP * index
                _draw_dot(axes, dot, y, hovered.name(dot.told))
            top += height
        return inline_svg(figure, title, hovered)


def draw_curves(
    curves: Sequence[Curve],
    title: str,
    axis_title: str,
    *,
    diagonal: bool = False,
    dots: bool = False,
    powers: bool = False,
) -> Markup:
    """Draw lines over a common frame.

    Args:
        curves: the lines.
        title: what a screen reader says.
        axis_title: words under the horizontal scale.
        diagonal: whether both directions have one scale, with the line y = x.
        dots: whether every point gets the mark of its series.
        powers: whether the horizontal scale is one of powers; all xs are positive.
    """
    xs = [x for curve in curves for x in curve.xs]
    ys = [y for curve in curves for y in curve.ys]
    with look():
        figure, axes = frame(310 if diagonal else 250, left=52)
        axes.set_xlabel(axis_title, labelpad=6)
        axes.grid(axis="both" if diagonal else "y")
        if diagonal:
            ends = set_scale(axes, "x", [*xs, *ys], air=0.0)
            set_scale(axes, "y", [*xs, *ys], air=0.0)
            axes.plot(ends, ends, color=COLOURS["soft"], linewidth=1, dashes=(4, 3), clip_on=False)
        else:
            set_scale(axes, "y", ys)
            set_scale(axes, "x", xs, air=0.02, powers=powers)
        hovered = Hovered()
        for curve in curves:
            gid = hovered.name(curve.told)
            line: dict[str, Any] = {"color": colour(curve.series), "linewidth": 1.9, "clip_on": False}
            axes.plot(curve.xs, curve.ys, gid=gid, zorder=3, **line)
        for curve in curves:
            # One point makes no line, so it gets a mark at least.
            is_dotted = dots or len(curve.xs) == 1
            marks = list(zip(curve.xs, curve.ys, strict=True)) if is_dotted else curve.marks
            if marks:
                mark(axes, curve.series, marks, hovered.name(curve.told), size=7 if dots else 8.5)
        return inline_svg(figure, title, hovered)


def draw_usage(counts: Sequence[int], title: str) -> Markup:
    """Draw how many items each code of a codebook has, most used first, with the even share as a line.

    Args:
        counts: (K,) items with each code, in any order.
        title: what a screen reader says.
    """
    bars = _shorten(sorted(counts, reverse=True))
    even = sum(counts) / max(len(counts), 1)
    with look():
        figure, axes = frame(100, left=4, right=4, width=TINY_WIDTH, bottom=16)
        axes.xaxis.set_visible(False)
        axes.yaxis.set_visible(False)
        axes.set_xlim(0, len(bars))
        axes.set_ylim(0, max(*bars, even, 1) * 1.04)
        axes.stairs(bars, fill=True, color=COLOURS["bars"], linewidth=0, clip_on=False)
        axes.axhline(even, color=COLOURS["soft"], linewidth=1, dashes=(4, 3), clip_on=False)
        axes.axhline(0, color=COLOURS["soft"], linewidth=1, clip_on=False)
        most = f"most used {short_count(max(counts, default=0))}"
        soft: dict[str, Any] = {"fontsize": 11, "color": COLOURS["soft"], "ha": "right"}
        axes.text(1, 0.98, most, transform=axes.transAxes, va="top", **soft)
        figure.text(1 - 4 / TINY_WIDTH, 0.03, f"{len(counts)} codes", **soft)
        return inline_svg(figure, title, Hovered(), "plot usage")


@lru_cache(maxsize=256)
def legend_mark(series: int) -> Markup:
    """Return the small picture that stands for an arm in a legend."""
    with look():
        figure, axes = frame(14, left=1, right=1, width=26, top=0, bottom=0)
        axes.axis("off")
        axes.set_xlim(0, 1)
        axes.set_ylim(-1, 1)
        axes.plot([0, 1], [0, 0], color=colour(series), linewidth=2, clip_on=False)
        mark(axes, series, [(0.5, 0.0)], None)
        return inline_svg(figure, "", Hovered(), "")


def colour(series: int) -> str:
    """Return a series' colour on a light page."""
    return COLOURS[f"c{series % NUM_COLOURS}"]


def wrap_label(label: str, width: float) -> list[str]:
    """Return a label in lines of at most a width [units]; a label of too many lines loses its middle.

    The beginning says what an arm is and the end in what it differs from others, so both stay.
    """
    # SVG cannot hold control characters, and a key should stand on one line with its value.
    label = "".join("\ufffd" if unicodedata.category(letter) == "Cc" else letter for letter in label)
    label = label.replace(" = ", "\u00a0=\u00a0")
    lines = _lines(label, width)
    size = len(label)
    while len(lines) > MAX_LINES:
        size -= 1
        lines = _lines(f"{label[: size * 3 // 5]}…{label[len(label) - size * 2 // 5 :]}", width)
    return lines


@lru_cache(maxsize=4096)  # the same names of arms stand in every picture, and are measured word by word
def text_width(text: str, size: float = 12) -> float:
    """Return how wide a text is in matplotlib's own font [units]; letters it lacks count as squares.

    The page shows it in the reader's font: nearly all are narrower than this one.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size)
    has = get_font(findfont(font)).get_char_index
    known = "".join(letter for letter in text if has(ord(letter)))
    width, _, _ = text_to_path.get_text_width_height_descent(known, font, ismath=False)
    return float(width) + size * (len(text) - len(known))


@contextmanager
def look() -> Iterator[None]:
    """Draw in the report's look, whatever settings of matplotlib the reader's machine has."""
    import matplotlib as mpl

    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(cast("Any", LOOK))
        # A name may be in a script that matplotlib's font lacks; the reader's browser has one for it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def frame(
    height: float,
    *,
    left: float,
    right: float = MARGIN,
    width: float = WIDTH,
    top: float = 8,
    bottom: float = 46,
) -> tuple["Figure", "Axes"]:
    """Return a picture of a size and its frame, margins in units."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
    FigureCanvasSVG(
        figure
    )  # the figure keeps it; pyplot, which would keep figures of its own, is never loaded
    sides = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes = figure.add_axes(sides, frame_on=False)
    axes.tick_params(pad=5)
    return figure, axes


def set_scale(
    axes: "Axes", name: str, values: Sequence[float], *, air: float = 0.06, powers: bool = False
) -> tuple[float, float]:
    """Give an axis a range that holds all values with air around them, and round numbers; return its ends."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

    low, high = (min(values), max(values)) if len(values) else (0.0, 1.0)
    axis = axes.xaxis if name == "x" else axes.yaxis
    if powers:
        high = max(high, low * 1.1)
        beyond = (high / low) ** air
        low, high = low / beyond, high * beyond
        (axes.set_xscale if name == "x" else axes.set_yscale)("log")
        subs = (1, 2, 5) if high / low < 200 else (1,)  # more would touch each other
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_locator(NullLocator())
    else:
        if high - low < 1e-12:
            low, high = low - max(abs(low), 1e-3) * 0.05, high + max(abs(high), 1e-3) * 0.05
        low, high = low - (high - low) * air, high + (high - low) * air
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    if powers or max(abs(low), abs(high)) >= 10_000:
        axis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    else:
        plain = ScalarFormatter(useOffset=False)
        plain.set_scientific(False)
        axis.set_major_formatter(plain)
    (axes.set_xlim if name == "x" else axes.set_ylim)(low, high)
    return low, high


def _label_width(rows: Sequence[Row]) -> float:
    free = WIDTH - 16
    return free - NOTE_WIDTH if any(row.note for row in rows) else free


def _write_row(axes: "Axes", row: Row, lines: Sequence[str], top: float) -> None:
    """Write a row's label and note above its dots."""
    from matplotlib.transforms import IdentityTransform, blended_transform_factory

    # Across: units of the picture, since names begin left of the scale; down: units of the rows.
    place = blended_transform_factory(IdentityTransform(), axes.transData)
    back: dict[str, Any] = {
        "facecolor": COLOURS["paper"],
        "edgecolor": "none",
        "pad": 1.0,
    }  # no grid line through words
    for index, line in enumerate(lines):
        y = top + 12 + LINE_HEIGHT * index
        axes.text(8, y, line, transform=place, bbox=back, zorder=2, gid="label")
    if row.note:
        soft: dict[str, Any] = {"color": COLOURS["soft"], "ha": "right"}
        axes.text(WIDTH - 8, top + 12, row.note, transform=place, bbox=back, zorder=2, **soft)


def _draw_dot(axes: "Axes", dot: Dot, y: float, gid: str) -> None:
    line: dict[str, Any] = {
        "color": colour(dot.series),
        "linewidth": 2,
        "solid_capstyle": "round",
        "clip_on": False,
    }
    axes.plot([dot.low, dot.high], [y, y], zorder=3, **line)
    mark(axes, dot.series, [(dot.value, y)], gid)


def mark(
    axes: "Axes", series: int, points: Sequence[tuple[float, float]], gid: str | None, *, size: float = 8
) -> None:
    """Draw the mark of a series at some points."""
    xs, ys = zip(*points, strict=True)
    edge: dict[str, Any] = {"markeredgecolor": COLOURS["paper"], "markeredgewidth": 1, "clip_on": False}
    kind = MARKS[series % len(MARKS)]
    axes.plot(xs, ys, kind, color=colour(series), markersize=size, gid=gid, zorder=4, **edge)


def _shorten(sorted_counts: list[int]) -> list[float]:
    size = -(-len(sorted_counts) // MAX_BARS) or 1
    groups = [sorted_counts[start : start + size] for start in range(0, len(sorted_counts), size)]
    return [sum(group) / len(group) for group in groups] or [0.0]


def _lines(text: str, width: float) -> list[str]:
    """Break between words, in a word too long for a line after punctuation, and else anywhere."""
    lines = [""]
    for word in text.split(" "):
        for index, piece in enumerate(_pieces(word, width)):
            joined = f"{lines[-1]} {piece}" if index == 0 and lines[-1] else f"{lines[-1]}{piece}"
            if not lines[-1] or text_width(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(piece)
    return lines


def _pieces(word: str, width: float) -> list[str]:
    if text_width(word) <= width:
        return [word]
    parts = re.findall(r"[^._=/,-]*[._=/,-]?", word)
    fitting = int(width // 12)  # a letter is no wider than it is high
    return [piece for part in parts if part for piece in textwrap.wrap(part, fitting)]
