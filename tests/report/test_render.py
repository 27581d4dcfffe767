"""The page, the Markdown and the JSON: one set of numbers, nothing from outside, every text escaped."""

import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from tests.datasets import describe_again
from tests.report.conftest import Study
from trec_semid.core.paths import join
from trec_semid.data.schema import RowCounts, SimilarIds
from trec_semid.report.build import build_report
from trec_semid.report.collect import collect_runs
from trec_semid.report.content import Report
from trec_semid.report.page.parts import Facts, Table
from trec_semid.report.render import data_parts, plain, render_json, render_markdown, render_page
from trec_semid.report.words import RANKING_METRICS, figure, interval

VOID = {"meta", "link", "br", "img", "input", "hr"}
SVG_EMPTY = {"line", "path", "polyline"}


class Page(HTMLParser):
    """Reads tags, attributes, text, and the rows of every table."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and "tr" in self.open and self.rows and self.rows[-1]:
            self.rows[-1][-1] += f" {data}"


@pytest.fixture(scope="module")
def html(study: Study) -> str:
    return render_page(study.report)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_every_tag_is_closed_in_order(page: Page):
    assert page.open == []


def test_nothing_is_fetched_from_outside(html: str, page: Page):
    assert "http" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe", "object", "use")]
    for tag, attributes in page.tags:
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "a":
            assert attributes["href"].startswith("#")


def test_the_contents_lead_to_every_section_in_order(page: Page):
    targets = [attributes["href"][1:] for tag, attributes in page.tags if tag == "a"][1:]
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert targets == sections
    assert len(sections) == 11


def test_headings_descend_without_gaps(page: Page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_picture_and_scrolling_table_has_a_name(page: Page):
    pictures = [
        attributes for tag, attributes in page.tags if tag == "svg" and "aria-hidden" not in attributes
    ]
    assert len(pictures) >= 18
    assert all(each["role"] == "img" and each["aria-label"] for each in pictures)
    scrolls = [attributes for _, attributes in page.tags if attributes.get("class") == "scroll"]
    assert all(each["aria-label"] and each["tabindex"] == "0" for each in scrolls)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def _cells(row: list[str]) -> list[str]:
    return [" ".join(cell.split()) for cell in row]


def test_page_markdown_and_json_say_the_same_numbers(study: Study, page: Page):
    told = json.loads(render_json(study.report))
    markdown = render_markdown(study.report)
    rows = [_cells(row) for row in page.rows]
    for scores in told["scores"]:
        for arm in told["arms"]:
            values = [scores["metrics"][each.key][arm["name"]] for each in RANKING_METRICS]
            cells = [
                (
                    f"{figure(each['value'])} ± {figure(each['sd'])}",
                    interval(each["low"], each["high"]),
                    f"valid {figure(each['valid'])}",
                )
                for each in values
            ]
            assert any(row[1:] == [" ".join(lines) for lines in cells] for row in rows)
            shown = [
                f"**{lines[0]}**; {'; '.join(lines[1:])}" if each["is_best"] else "; ".join(lines)
                for lines, each in zip(cells, values, strict=True)
            ]
            assert f"| {' | '.join(shown)} |" in markdown
    for each in told["comparisons"]:
        ends = interval(each["low"], each["high"], with_sign=True)
        assert any(ends in cell for row in rows for cell in row)
        assert ends in markdown
    for sentence in told["headline"]:
        assert sentence in "".join(page.words)
        assert plain(sentence) in markdown


def test_json_reads_back_as_the_same_report_and_holds_no_nan(study: Study):
    text = render_json(study.report)
    assert "NaN" not in text
    assert "Infinity" not in text
    assert Report.model_validate_json(text) == study.report


def test_texts_from_data_are_escaped(tmp_path: Path, study: Study):
    root = str(tmp_path / "root")
    shutil.copytree(study.root, root)
    nasty = '<script>alert("1")</script>&amp;|`x`'
    for folder in Path(root).iterdir():
        config = folder / "config.toml"
        if config.exists():
            config.write_text(config.read_text().replace(study.root, root))
    first = Path(root, "rank-0-item-seed-0")
    (first / "plan.txt").write_text(f"</pre>{nasty}\n```\n")
    Path(first, "config.toml").write_text(
        (first / "config.toml").read_text() + f"\n[extra]\nkey = '{nasty}'\n"
    )
    describe_again(join(root, "data"), name=nasty, label_rule=nasty)
    report = build_report(
        collect_runs([f"{root}/{Path(run).name}" for run in study.runs]), num_replicates=100
    )
    text = render_page(report.model_copy(update={"title": nasty, "notes": [nasty]}))
    assert "<script" not in text
    parsed = Page(text)
    assert parsed.open == []
    assert "".join(parsed.words).count(nasty) >= 5
    markdown = render_markdown(report)
    outside_the_fence = markdown.replace(f"</pre>{nasty}", "")
    assert not re.search(r"(?<!\\)<script", outside_the_fence)
    assert "\\&amp;\\|\\`x\\`" in outside_the_fence
    assert "````\n</pre>" in markdown


def test_markdown_tables_have_equal_cells_in_every_row(study: Study):
    rows: list[str] = []
    for line in [*render_markdown(study.report).splitlines(), ""]:
        if line.startswith("|"):
            rows.append(line)
        elif rows:
            widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
            assert len(widths) == 1
            rows = []


def test_a_report_of_tokenizers_alone_renders(study: Study):
    report = build_report(collect_runs([f"{study.root}/mmq"]))
    parsed = Page(render_page(report))
    assert parsed.open == []
    assert "codebooks" in [attributes["id"] for tag, attributes in parsed.tags if tag == "section"]
    assert "## Codebooks" in render_markdown(report)


def test_a_report_of_one_run_renders(study: Study):
    report = build_report(collect_runs(study.runs[:1]), num_replicates=100)
    parsed = Page(render_page(report))
    assert "differences" not in [attributes["id"] for tag, attributes in parsed.tags if tag == "section"]
    assert "## Differences" not in render_markdown(report)


def test_a_page_of_ten_runs_is_small(html: str):
    assert len(html.encode()) < 400_000


def test_a_number_of_too_few_users_says_so_instead_of_an_interval(study: Study, html: str):
    (found,) = [each for each in study.report.strata if each.key == "user_unseen"]
    assert found.metrics["auc"]["item"].low is None
    assert "too few users" in html
    assert "too few users" in render_markdown(study.report)


def test_sampled_negatives_are_no_events_and_doubts_are_said(study: Study):
    given = study.report.dataset
    test = given.splits["test"].model_copy(update={"events": 200, "negatives": 100, "unseen_item_events": 25})
    report = study.report.model_copy(
        update={
            "dataset": given.model_copy(
                update={
                    "num_events": 1100,
                    "num_users": 10,
                    "num_items": 200,
                    "sampled_negatives": 100,
                    "splits": {**given.splits, "test": test},
                    "first_time": "1997-09-20T03:05:10Z",
                    "last_time": "1998-04-22T23:10:38Z",
                    "read": RowCounts(events=1500),
                    "dropped": {"unknown_items": RowCounts(events=500, items=3)},
                    "duplicate_events": 4,
                    "similar_ids": {"items": SimilarIds(ids=2, examples=[["a", "a "]])},
                }
            )
        }
    )
    facts, splits, _ = data_parts(report)
    assert isinstance(facts, Facts)
    assert isinstance(splits, Table)
    said = dict(facts.pairs)
    assert said["Size"].startswith("1,000 events of 10 users on 200 items")
    assert said["Density"].startswith("50")
    assert said["Times"] == "1997-09-20T03:05:10Z to 1998-04-22T23:10:38Z"
    assert said["Events left out"] == "unknown items 500, of 1,500 read"
    assert said["Rows that repeat an event"] == "4"
    assert said["Similar ids"] == "2 of items differ from another by blanks or Unicode form alone"
    row = next(row for block in splits.blocks for row in block.rows if row[0].main == "test")
    assert row[-1].main == "25"
    assert row[-1].lines[0].startswith("25")  # of 100 observed ones
