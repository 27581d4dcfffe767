"""The table of a study: mean and spread over seeds of chosen metrics, for every step that has them."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple


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
        runs: `step` and `metrics` of every finished run, in the order of the table's rows.
        metrics: wanted columns; a step without any of them has no row.
    """
    table: dict[str, dict[str, Spread]] = {}
    for step in dict.fromkeys(run["step"] for run in runs):
        own = [run["metrics"] for run in runs if run["step"] == step]
        row = {
            key: spread([one[key] for one in own if key in one])
            for key in metrics
            if any(key in one for one in own)
        }
        if row:
            table[step] = row
    return table


def spread(values: list[float]) -> Spread:
    """Return mean and sample standard deviation."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, values)


def as_markdown(table: dict[str, dict[str, Spread]], metrics: Sequence[str]) -> str:
    """Write the table as Markdown, columns padded so that it also reads well as plain text."""
    shown = [key for key in metrics if any(key in row for row in table.values())]
    rows = [["run", "seeds", *shown]]
    for step, row in table.items():
        seeds = max(len(cell.values) for cell in row.values())
        rows.append([step, str(seeds), *(str(row[key]) if key in row else "" for key in shown)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
