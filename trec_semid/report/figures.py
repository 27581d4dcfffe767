"""Pictures of the report: dots with intervals, curves, and codebook usage."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from trec_semid.report.svg import Axis, Frame, colour, nice_axis, power_axis, short_count

MAX_BARS = 96
"""Usage pictures of larger codebooks show means of neighbouring codes."""
ROW_STEP = 13
"""Distance of the dots of a row."""


class Dot(NamedTuple):
    """A value with its interval."""

    series: int
    value: float
    low: float
    high: float
    told: str


class Row(NamedTuple):
    """A labelled row of dots."""

    label: str
    note: str
    dots: list[Dot]


class Curve(NamedTuple):
    """A line, and the points on it that deserve a mark."""

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
        axis_title: words under the scale.
        line_at: where a reference line stands, such as 0 for differences.
    """
    ends = [end for row in rows for dot in row.dots for end in (dot.low, dot.high)]
    x = nice_axis([*ends, *([] if line_at is None else [line_at])], axis_title)
    heights = [25 + ROW_STEP * len(row.dots) + 5 * (len(row.dots) > 1) for row in rows]
    frame = Frame(x, Axis(0, 1, ()), height=sum(heights) + 58, left=10)
    frame.draw_x_axis()
    if line_at is not None:
        frame.segment(frame.at_x(line_at), frame.top, frame.at_x(line_at), frame.bottom, "zero")
    top = float(frame.top)
    for row, height in zip(rows, heights, strict=True):
        frame.text(frame.left, top + 13, row.label, "label halo")
        frame.text(frame.right, top + 13, row.note, "tick halo", "end")
        for index, dot in enumerate(row.dots):
            y = top + 25 + ROW_STEP * index
            frame.segment(frame.at_x(dot.low), y, frame.at_x(dot.high), y, f"whisker {colour(dot.series)}")
            frame.mark(frame.at_x(dot.value), y, dot.series, dot.told)
        top += height
    return frame.svg(title)


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
    if diagonal:
        y = nice_axis([value for curve in curves for value in (*curve.xs, *curve.ys)], pad=0)
        x = y._replace(title=axis_title)
    else:
        make_axis = power_axis if powers else nice_axis
        x = make_axis([value for curve in curves for value in curve.xs], axis_title, pad=0.02)
        y = nice_axis([value for curve in curves for value in curve.ys])
    frame = Frame(x, y, height=310 if diagonal else 250)
    frame.draw_y_axis()
    frame.draw_x_axis(grid=diagonal)
    if diagonal:
        frame.segment(frame.left, frame.bottom, frame.right, frame.top, "zero")
    for curve in curves:
        frame.line(curve.xs, curve.ys, colour(curve.series), curve.told)
    for curve in curves:
        is_dotted = dots or len(curve.xs) == 1  # one point makes no line
        points = zip(curve.xs, curve.ys, strict=True) if is_dotted else curve.marks
        for px, py in points:
            frame.mark(frame.at_x(px), frame.at_y(py), curve.series, curve.told, size=3.6 if dots else 4.8)
    return frame.svg(title)


def draw_usage(counts: Sequence[int], title: str) -> Markup:
    """Draw how many items each code of a codebook has, most used first, with the even share as a line."""
    bars = _shorten(sorted(counts, reverse=True))
    even = sum(counts) / max(len(counts), 1)
    frame = Frame(
        Axis(0, len(bars), ()), Axis(0, max(*bars, even, 1) * 1.04, ()), height=96, left=4, width=180
    )
    frame.right, frame.top, frame.bottom = 176, 6, 84
    width = (frame.right - frame.left) / len(bars)
    places = [(frame.left + width * index, frame.at_y(bar)) for index, bar in enumerate(bars)]
    steps = "".join(f"V{y:.1f}H{x + width:.1f}" for x, y in places)
    frame.add(f'<path class="bars" d="M{frame.left} {frame.bottom}{steps}V{frame.bottom}z"/>')
    frame.segment(frame.left, frame.at_y(even), frame.right, frame.at_y(even), "zero")
    frame.segment(frame.left, frame.bottom, frame.right, frame.bottom, "edge")
    frame.text(frame.right, 16, f"most used {short_count(max(counts, default=0))}", "tick", "end")
    frame.text(frame.right, 94, f"{len(counts)} codes", "tick", "end")
    return frame.svg(title, "plot usage")


def _shorten(sorted_counts: list[int]) -> list[float]:
    size = -(-len(sorted_counts) // MAX_BARS) or 1
    groups = [sorted_counts[start : start + size] for start in range(0, len(sorted_counts), size)]
    return [sum(group) / len(group) for group in groups] or [0.0]
