"""Pictures, measured from outside: their texts with Pillow and the same font file, their shapes as XML."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib import resources
from itertools import combinations, pairwise
from typing import NamedTuple

import matplotlib as mpl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from PIL import ImageFont

from trec_semid.report.page.drawing import (
    MAX_LINES,
    WIDTH,
    Curve,
    Dot,
    Row,
    draw_curves,
    draw_dots,
    draw_usage,
    legend_mark,
    text_width,
    wrap_label,
)
from trec_semid.report.page.parts import COLOURS

FONT = ImageFont.truetype(f"{mpl.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 120)
VERDICT = "not distinguishable"


class Box(NamedTuple):
    """Where a text stands in a picture."""

    text: str
    left: float
    right: float
    top: float
    bottom: float


def boxes(picture: Markup) -> list[Box]:
    found: list[Box] = []
    for element in ET.fromstring(str(picture)).iter("text"):
        style, text = element.get("style", ""), element.text or ""
        size = float(re.search(r"font-size: ([\d.]+)px|font: ([\d.]+)px", style)[1])
        x, y, width = float(element.get("x")), float(element.get("y")), FONT.getlength(text) * size / 120
        anchor = re.search("text-anchor: (start|middle|end)", style)
        left = x - width * {"start": 0, "middle": 0.5, "end": 1}[anchor[1] if anchor else "start"]
        found.append(Box(text, left, left + width, y - 0.76 * size, y + 0.24 * size))
    return found


def overlap(one: Box, other: Box) -> bool:
    across = min(one.right, other.right) - max(one.left, other.left)
    down = min(one.bottom, other.bottom) - max(one.top, other.top)
    return across > 0.5 and down > 0.5


def height(picture: Markup) -> float:
    return float(ET.fromstring(str(picture)).get("viewBox").split()[3])


def long_names(num_arms: int, length: int) -> list[str]:
    name = "sasrec · ID + class (field) + attributes (field) + attributes (content) + rq_kmeans "
    return [f"{name * 3}"[: length - 12] + f" (dim = {arm:04})"[-12:] for arm in range(num_arms)]


@pytest.mark.parametrize("length", [60, 85, 240])
@pytest.mark.parametrize("note", ["", VERDICT])
def test_long_names_of_twelve_arms_stay_in_the_picture_and_off_the_verdicts(length: int, note: str):
    names = long_names(12, length)
    rows = [
        Row(name, note, [Dot(at, 0.1 * at, 0.1 * at - 0.4, 0.1 * at + 0.4, "")])
        for at, name in enumerate(names)
    ]
    picture = draw_dots(rows, "t", "NDCG@10 minus that of the baseline", line_at=0)
    texts = boxes(picture)
    assert [box.text for box in texts].count(VERDICT) == (12 if note else 0)
    assert len({box.text for box in texts if "dim" in box.text}) == 12
    for box in texts:
        assert box.left >= 0, box
        assert box.right <= WIDTH, box
        assert box.top >= 0, box
        assert box.bottom <= height(picture), box
    for one, other in combinations(texts, 2):
        assert not overlap(one, other), (one, other)


@pytest.mark.parametrize(
    ("ends", "line_at"),
    [((-0.0251, 0.0251), 0), ((0.70213, 0.70219), None), ((-123456, 987654), None), ((5, 5), None)],
)
def test_numbers_of_a_scale_stay_apart_and_inside(ends: tuple[float, float], line_at: float | None):
    picture = draw_dots([Row("a", "", [Dot(0, ends[0], *ends, "")])], "t", "x", line_at=line_at)
    texts = boxes(picture)
    assert len(texts) >= 4
    assert all(box.left >= 0 and box.right <= WIDTH for box in texts)
    assert not [pair for pair in combinations(texts, 2) if overlap(*pair)]


@pytest.mark.parametrize("highest", [0.31, 9_999, 250_000])
def test_numbers_beside_curves_stay_inside(highest: float):
    picture = draw_curves([Curve(0, [1, 250_000], [-highest, highest], "a")], "t", "step")
    texts = boxes(picture)
    assert all(box.left >= 0 and box.right <= WIDTH for box in texts)
    assert not [pair for pair in combinations(texts, 2) if overlap(*pair)]


@settings(deadline=None, max_examples=30)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_any_label_is_wrapped_into_lines_that_fit(label: str):
    lines = wrap_label(label, 220)
    assert 1 <= len(lines) <= MAX_LINES
    assert all(text_width(line) <= 220 for line in lines)


def test_a_label_that_fits_is_left_whole_and_the_ends_of_others_stay():
    assert wrap_label("item", 220) == ["item"]
    shortened = wrap_label(f"begins {'and goes on ' * 20} ends", 220)
    assert shortened[0].startswith("begins")
    assert shortened[-1].endswith("ends")
    assert "…" in "".join(shortened)


def test_widths_are_those_of_the_font_and_letters_it_lacks_are_squares():
    assert text_width("sasrec · ID") == pytest.approx(FONT.getlength("sasrec · ID") / 10, rel=0.02)
    assert text_width("商品") == 24


def test_pictures_are_well_formed_and_escape_their_words():
    nasty = '<b>"& $x$\x01商品'
    dot = Dot(1, 0.5, 0.4, 0.6, nasty.replace("\x01", ""))
    title = nasty.replace("\x01", "")
    pictures = [
        draw_dots([Row(nasty, "a", [dot, dot])], title, "x", line_at=0),
        draw_curves([Curve(0, [1, 2], [3, 4], title, [(1, 3)])], title, "x"),
        draw_curves([Curve(0, [0, 1], [0, 1], title)], title, "x", diagonal=True, dots=True),
        draw_usage([3, 1, 0], title),
    ]
    for picture in pictures:
        assert ET.fromstring(str(picture)).get("aria-label") == title
    assert "<b>" not in "".join(pictures)
    hovered = [each.text for each in ET.fromstring(str(pictures[0])).iter("title")]
    assert hovered == [title, title]
    assert any("$x$" in box.text for box in boxes(pictures[0]))


def test_a_picture_stands_in_a_page_without_anything_of_its_own():
    picture = str(draw_curves([Curve(0, [1, 2], [3, 4], "a", [(1, 3)])], "t", "x"))
    assert not re.search(r"\sid=|http|url\(|<use|<style|<defs|<metadata|font-family|xmlns", picture)


def test_every_colour_is_one_of_the_page_which_has_the_same_on_a_light_page_and_another_on_a_dark_one():
    css = resources.files("trec_semid.report").joinpath("templates/style.css").read_text()
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in css.split("@media (prefers-color", 1)
    )
    rows = [Row("a", "b", [Dot(series, 1, 0, 2, "") for series in range(8)])]
    picture = str(draw_dots(rows, "t", "x", line_at=0)) + str(draw_usage([1], "t"))
    used = re.findall(r"(.{10})(#[0-9a-f]{6})", picture)
    assert all(before.endswith(", ") for before, _ in used)
    assert {each for _, each in used} == set(COLOURS.values())
    for name, value in COLOURS.items():
        assert light[name] == value
        assert dark[name] != value


def test_the_same_numbers_make_the_same_picture():
    def draw() -> str:
        return str(draw_curves([Curve(0, [1, 2], [3, 4], "a", [(1, 3)])], "t", "x"))

    assert draw() == draw()


def test_settings_of_the_reader_neither_change_a_picture_nor_are_changed_by_one():
    plain = draw_usage([3, 1], "t")
    with mpl.rc_context({"font.size": 40, "svg.fonttype": "path"}):
        assert draw_usage([3, 1], "t") == plain
        assert mpl.rcParams["font.size"] == 40


def test_one_value_or_nothing_used_can_be_drawn():
    assert "svg" in draw_dots([Row("a", "", [Dot(0, 0.5, 0.5, 0.5, "")])], "t", "x")
    assert "translate(" in draw_curves([Curve(0, [5.0], [0.0], "")], "t", "x")
    assert "svg" in draw_usage([0, 0], "t")
    assert "svg" in draw_usage([], "t")


def test_usage_of_a_large_codebook_has_means_of_neighbouring_codes():
    def steps(counts: list[int]) -> int:
        shape = max(
            (each.get("d", "") for each in ET.fromstring(str(draw_usage(counts, "t"))).iter("path")), key=len
        )
        return shape.count("L") // 2

    assert steps([4] * 90) == 90
    assert 80 <= steps([4] * 4096) <= 96
    assert "4096 codes" in draw_usage([4] * 4096, "t")


def test_forty_series_have_marks_of_their_own():
    marks = [str(legend_mark(series)) for series in range(40)]
    assert len(set(marks)) == 40
    shapes = [re.sub(r"var\([^)]*\)", "", mark) for mark in marks]
    assert all(one != other for one, other in pairwise(shapes))


def test_on_a_scale_of_powers_equal_ratios_stand_equally_far_apart():
    texts = boxes(draw_curves([Curve(0, [1, 1000], [0, 1], "a")], "t", "x", powers=True))
    places = [
        (box.left + box.right) / 2 for name in ("1", "10", "100", "1k") for box in texts if box.text == name
    ]
    assert len(places) == 4
    first, second, third = (after - before for before, after in pairwise(places))
    assert (second, third) == (pytest.approx(first, abs=0.1), pytest.approx(first, abs=0.1))


def test_matplotlib_is_loaded_for_a_picture_alone_and_pyplot_never():
    code = (
        "import sys, trec_semid.cli.main, trec_semid.jobs.report\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from trec_semid.report.page.drawing import draw_usage\n"
        "draw_usage([1], 't')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr
