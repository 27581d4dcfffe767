"""A daily training on one page: a picture of each metric by day, and a table of the days."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from trec_semid.report.page.drawing import Dot, Row, draw_dots
from trec_semid.report.page.html import render_sections
from trec_semid.report.page.parts import Block, Cell, Column, Figure, Figures, Section, Table, Words

_MOST = 60
"""Days in a picture, the last ones."""
_WORDS = {
    "auc": "AUC",
    "gauc": "GAUC",
    "log_loss": "log loss",
    "calibration": "mean prediction / mean label",
    "recall@10": "recall@10",
    "ndcg@10": "NDCG@10",
}
_SIZES = {
    "events": "events",
    "new_users": "new users",
    "new_items": "new items",
    "known_users": "users known",
    "known_items": "items known",
    "gone_users": "users forgotten",
    "gone_items": "items forgotten",
}
Entry = Mapping[str, Any]


def render_days(run: str, entries: Sequence[Entry]) -> str:
    """Return the page.

    Args:
        run: folder of the daily training.
        entries: of `days.json`.
    """
    done = [entry for entry in entries if entry["state"] == "done"]
    names: list[str] = list(dict.fromkeys(name for entry in done for name in entry["metrics"]))
    drawn = [Figure(draw_days({"": done}, name), metric_words(name)) for name in names]
    told = "Each day was tested with the weights of the day before, and trained on afterwards. Bars are 95 % "
    words = Words(told + f"intervals under draws of users; pictures show the last {_MOST} days.")
    sections = [Section("days", "Day by day", [words, Figures(drawn)])] if drawn else []
    sections.append(Section("table", "The days as a table", [_table(entries, names)]))
    return render_sections(
        f"Daily training: {run}", f"{len(done)} of {len(entries)} days", sections, "days.json"
    )


def metric_words(name: str) -> str:
    """Return what a page calls a metric."""
    return _WORDS.get(name, name)


def draw_days(arms: Mapping[str, Sequence[Entry]], name: str) -> Markup:
    """Draw a metric by day, of one daily training or of several, which have the same days."""
    rows: dict[str, list[Dot]] = {}
    for series, (arm, done) in enumerate(arms.items(), start=1):
        for entry in done[-_MOST:]:
            if (each := entry["metrics"].get(name)) is not None:
                told = f"{entry['day']}: {each['value']:.4f} ({each['low']:.4f} to {each['high']:.4f})"
                dot = Dot(series, each["value"], each["low"], each["high"], f"{arm} {told}".strip())
                rows.setdefault(entry["day"], []).append(dot)
    words = metric_words(name)
    line_at = 1.0 if name == "calibration" else None
    drawn = [Row(day, "", dots) for day, dots in rows.items()]
    return draw_dots(drawn, f"{words} by day with 95 % intervals", words, line_at=line_at)


def _table(entries: Sequence[Entry], names: Sequence[str]) -> Table:
    columns = [Column("day"), *(Column(title) for title in _SIZES.values())]
    columns += [Column(metric_words(name), "95 % interval") for name in names]
    columns += [Column("codes moved"), Column("seconds")]
    rows = [_row(entry, names) for entry in entries]
    return Table("Days of the log, tested before they were trained on", columns, [Block("", rows)])


def _row(entry: Entry, names: Sequence[str]) -> list[Cell]:
    if entry["state"] != "done":
        empty = [Cell("")] * (len(_SIZES) + len(names) + 2)
        return [Cell(entry["day"], (f"missing: {entry['problem']}",)), *empty]
    moved = entry.get("codes", {}).get("moved_share")
    return [
        Cell(entry["day"]),
        *(Cell(f"{entry[name]:,}" if name in entry else "") for name in _SIZES),
        *(_metric(entry["metrics"].get(name)) for name in names),
        Cell("" if moved is None else f"{moved:.1%}"),
        Cell(f"{sum(entry['seconds'].values()):.1f}"),
    ]


def _metric(each: Mapping[str, float] | None) -> Cell:
    return (
        Cell("")
        if each is None
        else Cell(f"{each['value']:.4f}", (f"{each['low']:.4f} to {each['high']:.4f}",))
    )
