"""Turns the report's content into one page that needs nothing outside itself, into Markdown and into JSON."""

import json
import re
from collections.abc import Iterable, Sequence
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trec_semid import __version__
from trec_semid.report.content import Report
from trec_semid.report.page.drawing import legend_mark
from trec_semid.report.page.parts import (
    Bullets,
    Cell,
    Facts,
    Figures,
    Folded,
    Heading,
    Lead,
    Legend,
    Part,
    Source,
    Table,
    Terms,
    Words,
)
from trec_semid.report.sections import all_sections, subtitle

PACKAGE = "trec_semid.report"
SPECIAL = str.maketrans({each: f"\\{each}" for each in "\\`*_[]<>|#&"})
"""What Markdown would take for itself."""


def render_page(report: Report) -> str:
    """Return the report as one HTML page; every text from data is escaped."""
    environment = Environment(
        loader=PackageLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = _kind
    style = resources.files(PACKAGE).joinpath("templates/style.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        title=report.title,
        subtitle=subtitle(report),
        sections=all_sections(report),
        legend_mark=legend_mark,
        style=Markup(style),  # noqa: S704 - our own file
        version=__version__,
    )


def render_json(report: Report) -> str:
    """Return the report's numbers as JSON; there is no NaN in it."""
    return json.dumps(report.model_dump(mode="json"), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _kind(part: Part) -> str:
    """Return which macro of the template shows a part."""
    return type(part).__name__.lower()


def render_markdown(report: Report) -> str:
    """Return the report as Markdown: words and tables without the pictures; texts from data are escaped."""
    parts = [f"# {plain(report.title)}", plain(subtitle(report))]
    for section in all_sections(report):
        parts += [f"## {plain(section.title)}", *_shown(section.parts)]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Return text on one line with everything escaped that Markdown would take for itself."""
    return " ".join(text.split()).translate(SPECIAL)


def markdown_table(table: Table) -> str:
    """Return a table; the lines of a cell follow each other on one line."""
    titles = [
        plain(f"{column.title} ({column.hint})" if column.hint else column.title) for column in table.columns
    ]
    rule = [":--" if index == 0 or column.is_text else "--:" for index, column in enumerate(table.columns)]
    lines = [plain(table.caption), "", _line(titles), _line(rule)]
    for block in table.blocks:
        if block.title:
            told = f"**{plain(block.title)}** {plain(block.words)}".rstrip()
            lines.append(_line([told, *[""] * (len(titles) - 1)]))
        lines += [_line([_cell(cell) for cell in row]) for row in block.rows]
    return "\n".join(lines)


def _shown(parts: Iterable[Part]) -> list[str]:
    return [text for part in parts for text in _texts(part)]


def _texts(part: Part) -> list[str]:  # noqa: C901, PLR0911 - one line for each kind of part
    match part:
        case Table():
            return [markdown_table(part)]
        case Lead(sentences):
            return [plain(sentence) for sentence in sentences]
        case Heading(title):
            return [f"### {plain(title)}"]
        case Words(text):
            return [plain(text)]
        case Bullets(lines):
            return ["\n".join(f"- {plain(line)}" for line in lines)]
        case Facts(pairs) | Terms(pairs):
            return ["\n".join(f"- **{plain(term)}**: {plain(text)}" for term, text in pairs)]
        case Source(text):
            return [_fence(text)]
        case Folded(summary, inside):
            return [f"### {plain(summary)}", *_shown(inside)]
        case Figures() | Legend():
            return []


def _cell(cell: Cell) -> str:
    main = plain(cell.main)
    shown = f"**{main}**" if cell.css == "best" else main
    return "; ".join([shown, *(plain(line) for line in cell.lines)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _fence(text: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}\n{text.rstrip()}\n{marks}"
