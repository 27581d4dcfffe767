"""The report as Markdown: the same tables and words, without the pictures."""

import re
from collections.abc import Iterable, Sequence

from trec_semid.report.content import Report
from trec_semid.report.parts import (
    Bullets,
    Facts,
    Figures,
    Folded,
    Heading,
    Lead,
    Legend,
    Part,
    Source,
    Terms,
    Words,
)
from trec_semid.report.sections import all_sections, subtitle
from trec_semid.report.tables import Cell, Table

SPECIAL = str.maketrans({each: f"\\{each}" for each in "\\`*_[]<>|#&"})


def render_markdown(report: Report) -> str:
    """Return the report as Markdown; texts from data are escaped."""
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
