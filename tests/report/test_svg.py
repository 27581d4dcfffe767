import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.report.figures import Curve, Dot, Row, draw_curves, draw_dots, draw_usage
from trec_semid.report.svg import Axis, Frame, mark_path, nice_axis, power_axis, short_count


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_an_axis_holds_its_values_and_its_round_ticks(values: list[float]):
    axis = nice_axis(values)
    assert axis.low <= min(values)
    assert axis.high >= max(values)
    assert axis.high > axis.low
    assert 1 <= len(axis.ticks) <= 9
    room = (axis.high - axis.low) * 1e-6
    assert all(axis.low - room <= tick <= axis.high + room for tick in axis.ticks)
    labels = [axis.text(tick) for tick in axis.ticks]
    assert max(map(abs, values)) > 9_999 or len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ((0.0, 0.25, 0.5), ["0", "0.25", "0.50"]),
        ((-0.1, 0.0, 0.1), ["−0.1", "0", "0.1"]),
        ((100.0, 200.0), ["100", "200"]),
        ((0.0, 20000.0), ["0", "20k"]),
        ((0.702, 0.704), ["0.702", "0.704"]),
    ],
)
def test_tick_labels_have_the_decimals_they_need(ticks: tuple[float, ...], labels: list[str]):
    axis = Axis(ticks[0], ticks[-1], ticks)
    assert [axis.text(tick) for tick in ticks] == labels


def test_a_frame_puts_corners_where_they_belong():
    frame = Frame(Axis(0, 2, ()), Axis(0, 1, ()))
    assert (frame.at_x(0), frame.at_x(2)) == (frame.left, frame.right)
    assert (frame.at_y(0), frame.at_y(1)) == (frame.bottom, frame.top)
    assert frame.at_x(1) == (frame.left + frame.right) / 2


def test_pictures_are_well_formed_and_escape_their_words():
    nasty = '<b>"&'
    dot = Dot(1, 0.5, 0.4, 0.6, nasty)
    pictures = [
        draw_dots([Row(nasty, nasty, [dot, dot])], nasty, nasty, line_at=0),
        draw_curves([Curve(0, [1, 2], [3, 4], nasty, [(1, 3)])], nasty, nasty),
        draw_curves([Curve(0, [0, 1], [0, 1], nasty)], nasty, nasty, diagonal=True, dots=True),
        draw_usage([3, 1, 0], nasty),
    ]
    for picture in pictures:
        root = ET.fromstring(str(picture))
        assert root.get("aria-label") == nasty


def test_a_picture_of_one_value_or_of_nothing_used_can_be_drawn():
    assert "svg" in draw_dots([Row("a", "", [Dot(0, 0.5, 0.5, 0.5, "")])], "t", "x")
    assert 'class="mark s0"' in draw_curves([Curve(0, [5.0], [0.0], "")], "t", "x")
    assert "svg" in draw_usage([0, 0], "t")
    assert "svg" in draw_usage([], "t")


def test_usage_of_a_large_codebook_keeps_its_area():
    small, large = str(draw_usage([4] * 90, "t")), str(draw_usage([4] * 4096, "t"))
    assert large.count("V") < 110
    assert small.count("V") == 91 + 0
    assert "4.1k" not in large
    assert "4096 codes" in large


def test_neighbouring_series_have_other_marks_and_every_mark_is_closed():
    marks = [mark_path(series, 10, 10, 4) for series in range(8)]
    assert all(one != other for one, other in pairwise(marks))
    assert all(mark.startswith("M") and mark.endswith("z") for mark in marks)


def test_on_an_axis_of_powers_equal_ratios_stand_equally_far_apart():
    axis = power_axis([1, 5, 1000], pad=0)
    assert axis.ticks == (1, 10, 100, 1000)
    assert [axis.text(tick) for tick in axis.ticks] == ["1", "10", "100", "1k"]
    assert [axis.share(tick) for tick in axis.ticks] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert power_axis([3, 30], pad=0).ticks == (5, 10, 20)
    alone = power_axis([4, 4])
    assert alone.low < 4 < alone.high


def test_large_counts_are_short():
    assert [short_count(value) for value in (7, 1234, 2_500_000)] == ["7", "1.23k", "2.5M"]
    assert not math.isnan(float(short_count(0.25)))
