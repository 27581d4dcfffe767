"""Scalable pictures as text: axes, lines, dots and bars whose colours come from the page's style sheet.

A picture is drawn 360 units wide, so that its letters stay readable on a phone, and takes its colours from
CSS classes, so that a dark page has dark pictures. Text stays text: it can be selected, searched and read
aloud, and a picture weighs a few kilobytes.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup

NUM_COLOURS = 8
"""Classes `s0` .. `s7` of the style sheet; further series repeat the colours with other marks."""
WIDTH = 360


class Axis(NamedTuple):
    """One direction of a frame: its range and where numbers stand."""

    low: float
    high: float
    ticks: tuple[float, ...]
    title: str = ""
    is_of_powers: bool = False
    """Whether equal ratios stand equally far apart."""

    def share(self, value: float) -> float:
        """Return how far along the axis a value stands, from 0 to 1."""
        if self.is_of_powers:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def text(self, value: float) -> str:
        """Return a tick's label, with just the decimals that the ticks need."""
        if self.is_of_powers:
            return short_count(value)
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(self.high - self.low)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 2
        if step and abs(round(step, decimals) - step) > step * 1e-6:
            decimals += 1
        text = short_count(value) if abs(value) >= 10_000 else f"{value:.{decimals}f}"
        return "0" if value == 0 else text.replace("-", "−")


def short_count(value: float) -> str:
    """Return a large number in few letters, e.g. 12k or 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def nice_axis(values: Sequence[float], title: str = "", *, num_ticks: int = 4, pad: float = 0.06) -> Axis:
    """Return an axis with round ticks that holds all values with a little air around them."""
    low, high = (min(values), max(values)) if len(values) else (0.0, 1.0)
    if high - low < 1e-12:
        low, high = low - max(abs(low), 1e-3) * 0.05, high + max(abs(high), 1e-3) * 0.05
    air = (high - low) * pad
    low, high = low - air, high + air
    rough = (high - low) / num_ticks
    size = 10 ** math.floor(math.log10(rough))
    step = size * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, tuple(step * index for index in range(first, last + 1)), title)


def power_axis(values: Sequence[float], title: str = "", *, pad: float = 0.06) -> Axis:
    """Return an axis on which equal ratios stand equally far apart, with ticks at 1, 2 and 5 of each power.

    Args:
        values: positive numbers.
        title: words under it.
        pad: air at both ends, as a share of the logarithmic range.
    """
    low, high = (min(values), max(values)) if len(values) else (1.0, 10.0)
    high = max(high, low * 1.1)
    air = (high / low) ** pad
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 200 else (1,)  # more would touch each other
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    shown = tuple(tick for tick in ticks if low / air <= tick <= high * air)
    return Axis(low / air, high * air, shown, title, is_of_powers=True)


def colour(series: int) -> str:
    """Return the CSS class of a series."""
    return f"s{series % NUM_COLOURS}"


class Frame:
    """A picture under construction: data coordinates in, SVG out."""

    def __init__(self, x: Axis, y: Axis, *, height: int = 250, left: int = 46, width: int = WIDTH) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height
        self.left, self.right = left, width - 10
        self.top, self.bottom = 12, height - (40 if x.title else 24)
        self._parts: list[str] = []

    def at_x(self, value: float) -> float:
        """Return the horizontal place of a value."""
        return self.left + self.x.share(value) * (self.right - self.left)

    def at_y(self, value: float) -> float:
        """Return the vertical place of a value."""
        return self.bottom - self.y.share(value) * (self.bottom - self.top)

    def add(self, element: str) -> None:
        """Add an SVG element as it is; text in it must be escaped already."""
        self._parts.append(element)

    def segment(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """Draw a straight line between two places of the picture."""
        self.add(f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def text(self, x: float, y: float, words: str, css: str = "", anchor: str = "start") -> None:
        """Write words at a place of the picture."""
        kind = f' class="{css}"' if css else ""
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self.add(f'<text{kind} x="{x:.1f}" y="{y:.1f}"{where}>{escape(words)}</text>')

    def draw_x_axis(self, *, grid: bool = True) -> None:
        """Draw grid lines, numbers and the title below the frame."""
        for tick in self.x.ticks:
            place = self.at_x(tick)
            if grid:
                self.segment(place, self.top, place, self.bottom, "grid")
            self.text(place, self.bottom + 15, self.x.text(tick), "tick", "middle")
        if self.x.title:
            self.text((self.left + self.right) / 2, self.height - 7, self.x.title, "axis", "middle")

    def draw_y_axis(self) -> None:
        """Draw grid lines and numbers left of the frame; the title stands in the caption."""
        for tick in self.y.ticks:
            place = self.at_y(tick)
            self.segment(self.left, place, self.right, place, "grid")
            self.text(self.left - 6, place + 4, self.y.text(tick), "tick", "end")

    def line(self, xs: Sequence[float], ys: Sequence[float], css: str, told: str = "") -> None:
        """Draw a line through points in data coordinates; `told` shows under the pointer."""
        points = " ".join(f"{self.at_x(x):.1f},{self.at_y(y):.1f}" for x, y in zip(xs, ys, strict=True))
        title = f"<title>{escape(told)}</title>" if told else ""
        self.add(f'<polyline class="line {css}" points="{points}">{title}</polyline>')

    def mark(self, x: float, y: float, series: int, told: str = "", *, size: float = 4.2) -> None:
        """Draw the mark of a series at a place of the picture."""
        title = f"<title>{escape(told)}</title>" if told else ""
        self.add(f'<path class="mark {colour(series)}" d="{mark_path(series, x, y, size)}">{title}</path>')

    def svg(self, title: str, css: str = "plot") -> Markup:
        """Return the picture; `title` is what a screen reader says."""
        label = escape(title, quote=True)
        box = f"0 0 {self.width} {self.height}"
        body = "".join(self._parts)
        # Every text in the parts went through escape() above, so the whole may stand in a page.
        return Markup(f'<svg class="{css}" viewBox="{box}" role="img" aria-label="{label}">{body}</svg>')  # noqa: S704


def mark_path(series: int, x: float, y: float, size: float) -> str:
    """Return the outline of a series' mark: circle, square, triangle, diamond or bar, by turns."""
    shape = series % 5
    if shape == 0:
        return f"M{x - size:.1f} {y:.1f}a{size} {size} 0 1 0 {2 * size} 0a{size} {size} 0 1 0 {-2 * size} 0z"
    outlines = {
        1: ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
        2: ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
        3: ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        4: ((-0.5, -1.25), (0.5, -1.25), (0.5, 1.25), (-0.5, 1.25)),
    }
    corners = "L".join(f"{x + dx * size:.1f} {y + dy * size:.1f}" for dx, dy in outlines[shape])
    return f"M{corners}z"
