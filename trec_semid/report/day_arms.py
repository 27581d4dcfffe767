"""Daily trainings side by side: over the days that all have done, paired day by day.

A day is to these what a seed is to runs: each arm has one value, arms of a day were tested on the same
events, and differences from the baseline are judged by Student's paired test over days, corrected for all
arms that are shown (Holm; `evaluation.comparison`). It takes days for independent draws. Where what differs
lasts for days on end, as after one lucky start, intervals are too narrow, and more seeds are the remedy.
"""

import json
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from trec_semid.core.errors import DataError
from trec_semid.core.paths import exists, join, read_bytes
from trec_semid.evaluation.comparison import ArmResults, Comparison, compare_with_baseline
from trec_semid.report.days import Entry, draw_days, metric_words
from trec_semid.report.page.html import render_sections
from trec_semid.report.page.parts import Block, Cell, Column, Figure, Figures, Section, Table, Words
from trec_semid.runtime.runs import RunFolder

_FEWEST = 2
"""Arms without which nothing is compared, and days without which nothing tells how much days vary."""


class DayArms(NamedTuple):
    """Daily trainings over the days that they have in common."""

    baseline: str
    folders: dict[str, str]
    """Arm -> its run."""
    days: list[str]
    """In common, in order."""
    metrics: list[str]
    """That all have on all of these days."""
    entries: dict[str, list[Entry]]
    """Arm -> its entry of each of the days."""
    comparisons: dict[str, dict[str, Comparison]]
    """Arm -> metric -> against the baseline."""

    def values(self, arm: str, metric: str) -> list[float]:
        """Return a metric of an arm on each of the days."""
        return [entry["metrics"][metric]["value"] for entry in self.entries[arm]]


def are_daily(runs: Sequence[str]) -> bool:
    """Return whether every folder is a daily training's."""
    return all(_job_of(RunFolder(run, "")) == "daily" for run in runs)


def compare_days(runs: Sequence[str], baseline: str | None) -> DayArms:
    """Read daily trainings and compare them.

    Args:
        runs: their folders; the first is the baseline where none is named.
        baseline: name of an arm, which is that of its folder.

    Raises:
        DataError: there is one folder or no such baseline, verbs differ, fewer than two days are done by all,
            or a day was tested on other events, or a retriever's over another catalogue.
    """
    folders = _named(runs)
    base = baseline or next(iter(folders))
    if base not in folders:
        remedy = f"Arms are: {', '.join(folders)}"
        raise DataError("no such arm", field="baseline", value=baseline, remedy=remedy)
    told = {name: _read(folder) for name, folder in folders.items()}
    verbs = {name: each["verb"] for name, each in told.items()}
    if len({*verbs.values()}) > 1:
        remedy = "Compare rankers with rankers, and retrievers with retrievers"
        raise DataError(f"not of one verb: {verbs}", field="runs", remedy=remedy)
    done = {
        name: {entry["day"]: entry for entry in each["days"] if entry["state"] == "done"}
        for name, each in told.items()
    }
    days = [day for day in done[base] if all(day in each for each in done.values())]
    _expect_same_events(done, days, told[base]["verb"])
    entries = {name: [each[day] for day in days] for name, each in done.items()}
    every = [entry["metrics"] for each in entries.values() for entry in each]
    metrics = [metric for metric in every[0] if all(metric in one for one in every)]
    if not metrics:
        raise DataError("no metric is there on every day", field="runs", remedy="See each days.html")
    arms = {name: ArmResults({}, dict(enumerate(map(_values, each)))) for name, each in entries.items()}
    compared = compare_with_baseline(arms, base, [f"test/{metric}" for metric in metrics])
    plain = {
        name: {metric.removeprefix("test/"): one for metric, one in each.items()}
        for name, each in compared.items()
    }
    return DayArms(base, folders, days, metrics, entries, plain)


def render_day_arms(arms: DayArms, title: str | None) -> str:
    """Return the page."""
    told = f"{len(arms.days)} steps, {arms.days[0]} to {arms.days[-1]}, which all have done"
    names = list(arms.entries)
    drawn = [
        Figure(draw_days({name: arms.entries[name] for name in names}, metric), metric_words(metric))
        for metric in arms.metrics
    ]
    listed = ", ".join(names)
    legend = f"From top to bottom on each day: {listed}. Bars are 95 % intervals under draws of users."
    sections = [
        Section("arms", "Arms", [Words(_how(arms)), _table(arms)]),
        Section("days", "Day by day", [Words(legend), Figures(drawn)]),
    ]
    return render_sections(title or "Daily trainings side by side", told, sections, "report.json")


def as_json(arms: DayArms) -> str:
    """Return the same numbers."""
    told = {
        "baseline": arms.baseline,
        "runs": arms.folders,
        "days": arms.days,
        "arms": {
            name: {metric: arms.values(name, metric) for metric in arms.metrics} for name in arms.entries
        },
        "comparisons": {
            name: {metric: one._asdict() for metric, one in each.items()}
            for name, each in arms.comparisons.items()
        },
    }
    return json.dumps(told, indent=1) + "\n"


def as_markdown(arms: DayArms) -> str:
    """Return the table of arms."""
    lines = [_how(arms), "", "| arm | " + " | ".join(map(metric_words, arms.metrics)) + " |"]
    lines.append("|---" * (len(arms.metrics) + 1) + "|")
    for name in arms.entries:
        cells = [" ".join((cell.main, *cell.lines)) for cell in _row(arms, name)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _how(arms: DayArms) -> str:
    return (
        f"Mean over {len(arms.days)} steps ± standard deviation between them. Differences are from "
        f"{arms.baseline}, day by day, with 95 % intervals of a paired test over days. Verdicts are "
        "corrected for the number of arms."
    )


def _table(arms: DayArms) -> Table:
    # The words of a metric may be wider than its numbers, and the table then than the page.
    titles = ["pred / obs" if metric == "calibration" else metric_words(metric) for metric in arms.metrics]
    columns = [Column("arm", is_text=True), *map(Column, titles)]
    return Table("Daily trainings", columns, [Block("", [_row(arms, name) for name in arms.entries])])


def _row(arms: DayArms, name: str) -> list[Cell]:
    cells = [Cell(name, ("baseline",) if name == arms.baseline else ())]
    for metric in arms.metrics:
        values, lines = arms.values(name, metric), list[str]()
        if one := arms.comparisons.get(name, {}).get(metric):
            lines = [f"{one.difference:+.4f} ({one.low:+.4f} to {one.high:+.4f})", one.verdict]
        cells.append(Cell(f"{fmean(values):.4f} ± {stdev(values):.4f}", tuple(lines)))
    return cells


def _named(runs: Sequence[str]) -> dict[str, str]:
    folders = list(dict.fromkeys(run.rstrip("/") for run in runs))
    if len(folders) < _FEWEST:
        remedy = "Name two or more; one by itself has its days.html"
        raise DataError("nothing to compare", field="runs", value=", ".join(folders), remedy=remedy)
    short = [folder.rpartition("/")[2] for folder in folders]
    return dict(zip(short if len({*short}) == len(short) else folders, folders, strict=True))


def _job_of(folder: RunFolder) -> str | None:
    return folder.read_json("run.json").get("job") if exists(folder.path("run.json")) else None


def _values(entry: Entry) -> dict[str, float]:
    return {f"test/{metric}": each["value"] for metric, each in entry["metrics"].items()}


def _read(folder: str) -> dict[str, Any]:
    file = join(folder, "days.json")
    if not exists(file):
        raise DataError("no day is done", file=file, remedy="Let the daily training begin")
    return json.loads(read_bytes(file))


def _expect_same_events(done: Mapping[str, Mapping[str, Entry]], days: Sequence[str], verb: str) -> None:
    if len(days) < _FEWEST:
        problem = f"{len(days)} days are done by all, and a comparison needs {_FEWEST}"
        remedy = "Let them go through the same days; each has its own days.html"
        raise DataError(problem, field="runs", remedy=remedy)
    # What decides how hard a day is. Lists over fewer items find more.
    keys = ["last", "events", "users", "items", *(["known_items"] if verb == "retrieve" else [])]
    for day in days:
        counts = {name: [each[day].get(key) for key in keys] for name, each in done.items()}
        first = next(iter(counts.values()))
        for name, own in counts.items():
            if own != first:
                told = ", ".join(
                    f"{key} {value}, not {other}"
                    for key, value, other in zip(keys, own, first, strict=True)
                    if value != other
                )
                remedy = "Compare trainings over one log, with the same num_days, known_days and filter"
                raise DataError(f"{day}: {name} was tested on others ({told})", field="runs", remedy=remedy)
