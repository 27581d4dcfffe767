"""Pictures of a user's items and interests in a plane: points, and the ways that interests have gone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from trec_semid.report.page.drawing import MARKS, WIDTH, colour, frame, look
from trec_semid.report.page.parts import COLOURS, Hovered, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 300
SIDE = 16


class Spot(NamedTuple):
    """An item in the plane, of the series of an interest."""

    series: int
    x: float
    y: float
    told: str
    """What stands under the pointer."""
    is_filled: bool


class Way(NamedTuple):
    """Where an interest was, one point after another; a mark stands at the last."""

    series: int
    points: Sequence[tuple[float, float]]
    told: str
    label: str
    """Stands beside the mark."""


def draw_plane(spots: Sequence[Spot], ways: Sequence[Way], title: str) -> Markup:
    """Draw items and interests with one scale in both directions, without numbers: distances are what counts.

    Args:
        spots: items; those of one series, filled or not, may lie on each other.
        ways: of interests; a single point is the mark alone.
        title: what a screen reader says.
    """
    with look():
        figure, axes = frame(HEIGHT, left=SIDE, right=SIDE, top=SIDE, bottom=SIDE)
        axes.set_axis_off()
        edges: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "zorder": 1}
        axes.plot([0, 1, 1, 0, 0], [0, 0, 1, 1, 0], color=COLOURS["grid"], linewidth=1, **edges)
        _set_equal_scales(axes, [(spot.x, spot.y) for spot in spots], [p for way in ways for p in way.points])
        hovered = Hovered()
        for spot in spots:
            edge: dict[str, Any] = {"markeredgecolor": colour(spot.series), "markeredgewidth": 1.4}
            face = colour(spot.series) if spot.is_filled else COLOURS["paper"]
            gid = hovered.name(spot.told)
            size = 7 if spot.is_filled else 5.5
            axes.plot([spot.x], [spot.y], "o", color=face, markersize=size, gid=gid, zorder=2, **edge)
        for way in ways:
            _draw_way(axes, way, hovered.name(way.told))
        return inline_svg(figure, title, hovered)


def _draw_way(axes: "Axes", way: Way, gid: str) -> None:
    xs, ys = [x for x, _ in way.points], [y for _, y in way.points]
    shade = colour(way.series)
    if len(xs) > 1:
        axes.plot(xs, ys, "-", color=shade, linewidth=1.6, zorder=3, gid=gid)
        axes.plot(xs[:-1], ys[:-1], ".", color=shade, markersize=5, zorder=3)
    kind = MARKS[way.series % len(MARKS)]
    edge: dict[str, Any] = {"markeredgecolor": COLOURS["paper"], "markeredgewidth": 1.2}
    axes.plot(xs[-1:], ys[-1:], kind, color=shade, markersize=11, zorder=4, gid=gid, **edge)
    offset: dict[str, Any] = {"xytext": (8, 5), "textcoords": "offset points", "zorder": 5}
    axes.annotate(way.label, (xs[-1], ys[-1]), color=shade, fontweight="bold", **offset)


def _set_equal_scales(axes: "Axes", *groups: Sequence[tuple[float, float]]) -> None:
    points = [point for group in groups for point in group] or [(0.0, 0.0)]
    xs, ys = zip(*points, strict=True)
    width, height = WIDTH - 2 * SIDE, HEIGHT - 2 * SIDE
    # One unit of the plane is as long across as up: the tighter direction says how long.
    unit = max((max(xs) - min(xs)) / width, (max(ys) - min(ys)) / height, 1e-6) * 1.08
    for set_limits, values, size in ((axes.set_xlim, xs, width), (axes.set_ylim, ys, height)):
        middle = (max(values) + min(values)) / 2
        set_limits(middle - unit * size / 2, middle + unit * size / 2)
