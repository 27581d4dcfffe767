"""Write the tables of documents from the results in docs/results/*.json; `--check` only compares.

A document says where a table goes, and everything between the two lines is written by this tool:

    <!-- table: beauty/main -->
    <!-- end of table -->

`beauty` is the file (docs/results/beauty.json), `main` the table in it. All files have one schema, `Results`:
rows with their metrics, seeds and origin (command, commit, data, checksum), and tables, which say what
stands in their columns. A cell is a template such as `{test/recall@10:.4f} / {test/ndcg@10:.4f}`: a key of
the row's metrics or words, or `label`, `seeds` (their number), `tried`, `commit`, and how to print it.
A metric prints with its spread (`± sd`, or `(low to high)`); `key.mean`, `key.low`, `key.high` print one of
its numbers alone. A cell is empty where the row has none of its keys, and has a dash for one it lacks.
Usage: python tools/tables.py [--check]
"""

import re
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/results"
_MARKED = re.compile(r"^<!-- table: (\w+)/([\w-]+) -->\n(.*?)^<!-- end of table -->$", re.M | re.S)
_KEY = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")
_PARTS = (".mean", ".low", ".high")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Strict):
    """A number and its spread: over seeds (`sd`), or from the least to the largest of repeated turns."""

    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


class Origin(_Strict):
    """Where the numbers of a row come from; what was not recorded is null, never guessed."""

    command: str
    commit: str | None
    dataset: str
    dataset_checksum: str | None
    """First 12 digits of what `prepare` prints; null where the command draws its data from fixed seeds."""
    machine: str | None = None
    remarks: str | None = None


class Row(_Strict):
    """One arm, contestant or setting: keys of metrics are `<split>/<metric>[@K][/<stratum>]` or a unit."""

    label: str
    origin: str | None = None
    """A key of the file's origins; null for published numbers, which have a source instead."""
    source: str | None = None
    seeds: list[int] = []
    tried: int | None = None
    """Configurations of the kind whose validation was looked at."""
    commit: str | None = None
    """Where it is another one than the origin's."""
    metrics: dict[str, Metric] = {}
    words: dict[str, str] = {}
    """What else columns say of the row: settings, where a run ended."""
    cells: dict[str, str] = {}
    """Words that stand in a column instead of what its template prints."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> "Row":
        if (self.origin is None) == (self.source is None):
            raise ValueError(f"row '{self.label}' needs an origin or a source, and not both")
        return self


class Column(_Strict):
    """The head of a column and the template of its cells."""

    title: str
    cell: str


class Table(_Strict):
    """Rows, by name or as `file:name` of another file, and what is shown of each."""

    columns: list[Column]
    rows: list[str]
    leading_zero: bool = True
    """Whether 0.5 prints as 0.5 or as .5."""

    @model_validator(mode="after")
    def _titles_differ(self) -> "Table":
        titles = [column.title for column in self.columns]
        if len(set(titles)) < len(titles):
            raise ValueError(f"two columns of one title among {titles}")
        return self


class Results(_Strict):
    """One file of docs/results."""

    schema_version: Literal[1]
    title: str
    origins: dict[str, Origin] = Field(default_factory=dict)
    rows: dict[str, Row]
    tables: dict[str, Table]

    @model_validator(mode="after")
    def _origins_exist(self) -> "Results":
        for name, row in self.rows.items():
            if row.origin is not None and row.origin not in self.origins:
                raise ValueError(f"row '{name}': no origin '{row.origin}'")
        return self


def read_results(folder: Path = FOLDER) -> dict[str, Results]:
    """Read every file of results, by its name without `.json`."""
    results: dict[str, Results] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            results[path.stem] = Results.model_validate_json(path.read_text())
        except ValidationError as error:
            raise SystemExit(f"{path}: {error}") from None
    return results


def render_table(results: dict[str, Results], file: str, name: str) -> str:
    """Return a table in Markdown."""
    table = results[file].tables[name]
    lines = [
        "| " + " | ".join(column.title for column in table.columns) + " |",
        "|---" * len(table.columns) + "|",
    ]
    for key in table.rows:
        other, _, row_name = key.rpartition(":")
        source = results[other or file]
        row = source.rows[row_name]
        commit = row.commit or (source.origins[row.origin].commit if row.origin else None)
        cells = [
            render_cell(column, row, commit, leading_zero=table.leading_zero) for column in table.columns
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |")


def render_cell(column: Column, row: Row, commit: str | None, *, leading_zero: bool) -> str:
    """Return what a row has in a column."""
    if column.title in row.cells:
        return row.cells[column.title]
    words = {"label": row.label, "commit": commit, "tried": row.tried, "seeds": len(row.seeds) or None}
    words |= row.words

    def said(key: str, how: str) -> str | None:
        if key in words:
            return None if words[key] is None else str(words[key])
        stem, part = next(((key.removesuffix(p), p[1:]) for p in _PARTS if key.endswith(p)), (key, ""))
        if stem not in row.metrics:
            return None
        return render_metric(row.metrics[stem], part, how, leading_zero=leading_zero)

    keys = _KEY.findall(column.cell)
    values = [said(key, how) for key, how in keys]
    if keys and all(value is None for value in values):
        return ""
    parts = iter(values)
    return _KEY.sub(lambda _: next(parts) or "–", column.cell)


def render_metric(metric: Metric, part: str, how: str, *, leading_zero: bool) -> str:
    """Return a metric with its spread, or one part of it, as `how` says (a format of Python's)."""

    def number(value: float, how: str = how) -> str:
        text = format(value, how).replace("%", " %").replace("-", "−")
        return text if leading_zero else re.sub(r"(?<!\d)0\.", ".", text)

    if part:
        value = getattr(metric, part)
        return "–" if value is None else number(value)
    text = number(metric.mean)
    if metric.sd is not None:
        text += f" ± {number(metric.sd, how.lstrip('+'))}"
    if metric.low is not None and metric.high is not None:
        text += f" ({number(metric.low)} to {number(metric.high)})"
    return text


def write_tables(text: str, results: dict[str, Results]) -> str:
    """Return a document with every marked table written anew."""

    def table(marked: re.Match[str]) -> str:
        file, name = marked[1], marked[2]
        if file not in results or name not in results[file].tables:
            raise SystemExit(f"<!-- table: {file}/{name} -->: docs/results/{file}.json has no such table")
        body = render_table(results, file, name)
        return f"<!-- table: {file}/{name} -->\n\n{body}\n\n<!-- end of table -->"

    return _MARKED.sub(table, text)


def main(words: list[str]) -> int:
    """Write the tables of every document, or with --check say which are not as the results are."""
    results = read_results()
    stale: list[Path] = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text()
        written = write_tables(text, results)
        if written != text:
            stale.append(path)
            if "--check" not in words:
                path.write_text(written)
    for path in stale:
        print(
            f"{path.relative_to(ROOT)}: tables written"
            if "--check" not in words
            else f"{path}: tables differ"
        )
    return 1 if stale and "--check" in words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
