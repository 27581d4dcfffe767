"""The report as Markdown: the same tables and words, without the pictures."""

import re

from trec_semid.evaluation.report import codebooks, facts, tables
from trec_semid.evaluation.report.content import Report
from trec_semid.evaluation.report.definitions import PROTOCOLS, words
from trec_semid.evaluation.report.pictures import sliced_dimensions
from trec_semid.evaluation.report.sections import (
    SLICE_WORDS,
    TEST_WORDS,
    section_titles,
    subtitle,
)
from trec_semid.evaluation.report.tables import Cell, Table
from trec_semid.evaluation.report.words import listing

SPECIAL = str.maketrans({each: f"\\{each}" for each in "\\`*_[]<>|#&"})


def render_markdown(report: Report) -> str:
    """Return the report as Markdown; texts from data are escaped."""
    bodies = {
        "answer": _answer,
        "data": _data,
        "metrics": _metrics,
        "differences": _differences,
        "slices": _slices,
        "curves": _calibration,
        "training": _training,
        "codebooks": _codebooks,
        "plan": _plans,
        "made": _made,
        "words": _words,
    }
    parts = [f"# {plain(report.title)}", plain(subtitle(report))]
    for key, title in section_titles(report):
        parts += [f"## {title}", *bodies[key](report)]
    return "\n\n".join(part for part in parts if part) + "\n"


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
            lines.append(_line([f"**{plain(block.title)}**", *[""] * (len(titles) - 1)]))
        lines += [_line([_cell(cell) for cell in row]) for row in block.rows]
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    main = plain(cell.main)
    shown = f"**{main}**" if cell.css == "best" else main
    return "; ".join([shown, *(plain(line) for line in cell.lines)])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _fence(text: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}\n{text.rstrip()}\n{marks}"


def _pairs(pairs: list[tuple[str, str]]) -> str:
    return "\n".join(f"- **{plain(term)}**: {plain(text)}" for term, text in pairs)


def _answer(report: Report) -> list[str]:
    notes = [f"- {plain(note)}" for note in report.notes]
    return [*map(plain, report.headline), "\n".join(notes)]


def _data(report: Report) -> list[str]:
    parts = [_pairs(facts.dataset_facts(report)), markdown_table(facts.split_table(report))]
    return [*parts, markdown_table(facts.modality_table(report))] if report.dataset.modalities else parts


def _metrics(report: Report) -> list[str]:
    parts = [markdown_table(tables.arm_table(report))]
    for scores in report.scores:
        parts += [f"### {scores.protocol.capitalize()} protocol", PROTOCOLS[scores.protocol]]
        parts.append(markdown_table(tables.metric_table(report, scores)))
    return parts


def _differences(report: Report) -> list[str]:
    parts = [TEST_WORDS]
    for scores in report.scores:
        parts.append(f"### {scores.protocol.capitalize()} protocol")
        parts.append(markdown_table(tables.comparison_table(report, scores.protocol)))
    return parts


def _slices(report: Report) -> list[str]:
    shown = [markdown_table(tables.strata_table(report, each)) for each in sliced_dimensions(report)]
    return [SLICE_WORDS, *shown]


def _calibration(report: Report) -> list[str]:
    return [markdown_table(tables.calibration_table(report))]


def _training(report: Report) -> list[str]:
    return [markdown_table(facts.training_table(report))]


def _codebooks(report: Report) -> list[str]:
    shown = codebooks.pictured(report.codebooks)
    positions = [markdown_table(codebooks.position_table(each)) for each in shown]
    return [markdown_table(codebooks.quality_table(report.codebooks)), *positions]


def _plans(report: Report) -> list[str]:
    return [
        part for plan in report.plans for part in (f"Used by {plain(listing(plan.arms))}.", _fence(plan.text))
    ]


def _made(report: Report) -> list[str]:
    commands = "\n".join(f"# {run.run}\n{run.command}" for run in report.runs)
    return [_pairs(facts.origin_facts(report)), markdown_table(facts.run_table(report)), _fence(commands)]


def _words(report: Report) -> list[str]:
    return [_pairs(words(report.bootstrap.replicates))]
