"""The summary of a study: mean and spread over seeds of chosen metrics, as Markdown and as one HTML page."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from trec_semid.evaluation.comparison import Comparison
from trec_semid.metrics.verdicts import NOT_DISTINGUISHABLE


class Spread(NamedTuple):
    """A metric over the seeds of one step."""

    mean: float
    sd: float | None
    """Sample standard deviation (n - 1); None for a single seed."""
    values: list[float]

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + ("" if self.sd is None else f" ± {self.sd:.4f}")


def tabulate(runs: Sequence[dict[str, Any]], metrics: Sequence[str]) -> dict[str, dict[str, Spread]]:
    """Gather step -> metric -> spread.

    Args:
        runs: `step` and `metrics` of every finished run, in the order of the rows.
        metrics: columns; a step without any of them has no row.
    """
    spreads: dict[str, dict[str, Spread]] = {}
    for step in dict.fromkeys(run["step"] for run in runs):
        own = [run["metrics"] for run in runs if run["step"] == step]
        row = {
            key: spread([one[key] for one in own if key in one])
            for key in metrics
            if any(key in one for one in own)
        }
        if row:
            spreads[step] = row
    return spreads


def spread(values: list[float]) -> Spread:
    """Return mean and sample standard deviation."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, values)


class Row(NamedTuple):
    """A step as the summary shows it."""

    step: str
    seeds: str
    """How many of its runs are finished, `2 of 3` where some failed."""
    cells: list[list[str]]
    """For each shown metric: mean and spread, then how it compares with the baseline; empty without it."""
    is_baseline: bool


class Summary(NamedTuple):
    """A row for each step, ready to be written."""

    metrics: list[str]
    rows: list[Row]
    notes: list[str]
    """What the reader must know, and every failed run."""


def lay_out(
    runs: Sequence[dict[str, Any]],
    metrics: Sequence[str],
    baseline: str | None,
    compared: Mapping[str, Mapping[str, Comparison]],
) -> Summary:
    """Summarise all steps that have one of the metrics, or a failed run.

    Args:
        runs: `step`, `label`, `metrics` and `error` of every run, in the order of the rows.
        metrics: columns; one that no run has is left out.
        baseline: the step that others are compared with.
        compared: step to metric to comparison.
    """
    good = [run for run in runs if not run["error"]]
    known = tabulate(good, metrics)
    shown = [key for key in metrics if any(key in row for row in known.values())]
    failed = [run for run in runs if run["error"]]
    rows: list[Row] = []
    for step in dict.fromkeys(run["step"] for run in runs):
        if step not in known and all(run["step"] != step for run in failed):
            continue
        spreads, tests = known.get(step, {}), compared.get(step, {})
        cells = [_cell(spreads.get(key), tests.get(key)) for key in shown]
        rows.append(Row(step, _seeds(step, runs), cells, step == baseline))
    lost = [f"Failed: {run['label']}: {run['error']}" for run in failed]
    return Summary(shown, rows, _notes(baseline, compared) + lost)


def as_markdown(summary: Summary) -> str:
    """Write it as a Markdown table, columns padded so that it also reads well as plain text."""
    rows = [["run", "seeds", *summary.metrics]]
    for row in summary.rows:
        name = f"{row.step} (baseline)" if row.is_baseline else row.step
        rows.append([_plain(name), row.seeds, *(_plain("; ".join(cell)) for cell in row.cells)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    lines += [f"\n{_plain(note)}" for note in summary.notes]
    return "\n".join(lines)


def render_study(summary: Summary, *, title: str, result: dict[str, Any]) -> str:
    """Return the page; on narrow screens every row becomes a card. Text from data is escaped.

    Args:
        summary: what to show.
        title: the study's name.
        result: `study.json`, of which command, commit and duration are told.
    """
    environment = Environment(
        loader=PackageLoader("trec_semid.study"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("study.html.j2").render(summary=summary, title=title, result=result)


def _seeds(step: str, runs: Sequence[dict[str, Any]]) -> str:
    own = [run["error"] is None for run in runs if run["step"] == step]
    return str(len(own)) if all(own) else f"{sum(own)} of {len(own)}"


def _cell(spread: Spread | None, test: Comparison | None) -> list[str]:
    if spread is None:
        return []
    if test is None:
        return [str(spread)]
    if test.verdict == NOT_DISTINGUISHABLE:
        sure = f"detectable {test.smallest_detectable:.4f}, p {test.p_holm:.2g}"
        return [str(spread), f"{NOT_DISTINGUISHABLE} ({test.difference:+.4f}, {sure})"]
    return [str(spread), f"{test.verdict} by {abs(test.difference):.4f} (p {test.p_holm:.2g})"]


def _notes(baseline: str | None, compared: Mapping[str, Mapping[str, Comparison]]) -> list[str]:
    tests = [test for row in compared.values() for test in row.values()]
    if not tests:
        return []
    pairings = sorted({test.paired_over for test in tests})
    over = ", or over ".join(pairings)
    return [
        f"Mean ± standard deviation over seeds. Compared with {baseline}, paired over {over}; p is "
        "Holm-adjusted for all rows of a column, and for all columns of one metric's slices together. Not "
        "distinguishable: that p is 0.05 or more, the 95 % interval holds zero, or the difference is below "
        "what a study of this size finds with 80 % power (detectable)."
    ]


def _plain(text: str) -> str:
    """Keep what comes from errors from breaking the table."""
    return " ".join(text.split()).replace("|", "\\|")
