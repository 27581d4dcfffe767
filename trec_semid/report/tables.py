"""Tables of the report: cells of text, shown by the page and by the Markdown alike."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from trec_semid.report.content import (
    NOT_DISTINGUISHABLE,
    Arm,
    Comparison,
    Counts,
    Estimate,
    Protocol,
    Report,
    RowCounts,
    Scores,
)
from trec_semid.report.definitions import PROTOCOL_TITLES, Metric, metric
from trec_semid.report.words import (
    NONE,
    corrected_p_value,
    count,
    figure,
    interval,
    p_value,
    signed,
    things,
)

T = TypeVar("T")
METRIC_CAPTION = (
    "Test part. First line: mean over seeds ± standard deviation; second: 95 % interval; third: the same "
    "metric on the validation part. Marked: better than every other arm by more than could be chance."
)
DIMENSIONS = {"popularity": "item popularity", "activity": "user activity"}
VERDICT_CSS = {"better": "better", "worse": "worse", NOT_DISTINGUISHABLE: "same"}


class Cell(NamedTuple):
    """One cell: a main text, smaller lines under it, and a CSS class."""

    main: str
    lines: tuple[str, ...] = ()
    css: str = ""


class Column(NamedTuple):
    """A column's title, a hint under it, and whether it holds words instead of numbers."""

    title: str
    hint: str = ""
    is_text: bool = False


class Block(NamedTuple):
    """Rows that belong together, under a title where it is not empty."""

    title: str
    rows: list[list[Cell]]
    words: str = ""
    """What stands under the title."""


class Table(NamedTuple):
    """A table with its caption."""

    caption: str
    columns: list[Column]
    blocks: list[Block]


def arm_table(report: Report) -> Table:
    """Return what each arm is; columns that say nothing of any arm are left out."""
    cells = [_arm_cells(arm) for arm in report.arms]
    shown = [column for column in cells[0] if any(each[column].main != NONE for each in cells)]
    rows = [[each[column] for column in shown] for each in cells]
    caption = "What was compared: arms differ in their config, runs of an arm in their seed."
    return Table(caption, shown, [Block("", rows)])


def _arm_cells(arm: Arm) -> dict[Column, Cell]:
    shown = {"item": "item ID", "semantic": "semantic ID", "both": "item ID and semantic ID"}
    dense, tables = (arm.parameters.get(kind) for kind in ("dense", "tables"))
    return {
        Column("Arm"): Cell(arm.name, ("baseline",) if arm.is_baseline else ()),
        Column("Model", is_text=True): Cell(arm.model or NONE, (), "text"),
        Column("Item as", is_text=True): Cell(
            shown.get(arm.representation, arm.representation) or NONE, (), "text"
        ),
        Column("Tokenizer", is_text=True): Cell(arm.tokenizer or NONE, (), "text"),
        Column("Lists", is_text=True): Cell(arm.lists or NONE, (), "text"),
        Column("Seeds", is_text=True): Cell(", ".join(map(str, arm.seeds)), (), "text"),
        Column("Weights", "dense"): Cell(NONE if dense is None else count(dense)),
        Column("Weights", "in tables"): Cell(NONE if tables is None else count(tables)),
    }


def metric_table(report: Report, scores: Scores, metrics: Sequence[Metric]) -> Table:
    """Return one row per arm with every metric under one protocol."""
    columns = [Column("Arm"), *(Column(each.title, each.hint) for each in metrics)]
    rows = [
        [
            Cell(arm.name, ("baseline",) if arm.is_baseline else ()),
            *(estimate_cell(each.key, scores.metrics[each.key][arm.name]) for each in metrics),
        ]
        for arm in report.arms
    ]
    return Table(METRIC_CAPTION, columns, [Block("", rows)])


def estimate_cell(key: str, estimate: Estimate, *, with_valid: bool = True) -> Cell:
    """Return the cell of one arm's metric, which a key names."""
    if estimate.value is None:
        return Cell(NONE, ("not defined",))
    spread = "" if estimate.sd is None else f" ± {figure(estimate.sd)}"
    lines: list[str] = []
    if metric(key).is_by_user:
        lines.append("too few users" if estimate.low is None else interval(estimate.low, estimate.high))
    if with_valid and estimate.valid is not None:
        lines.append(f"valid {figure(estimate.valid)}")
    return Cell(f"{figure(estimate.value)}{spread}", tuple(lines), "best" if estimate.is_best else "")


def comparison_table(report: Report, protocol: Protocol, metrics: Sequence[str] | None = None) -> Table:
    """Return every arm's paired difference from the baseline, metric by metric.

    Args:
        report: the report.
        protocol: under which protocol.
        metrics: in which metrics; None = all that were compared.
    """
    columns = [
        Column("Arm"),
        Column("Difference", "95 % interval"),
        Column("Verdict", is_text=True),
        Column("p"),
        Column("p, corrected", "Holm"),
        Column("Smallest detectable", "80 % power, 5 % level"),
    ]
    chosen = [
        each
        for each in report.comparisons
        if each.protocol == protocol and each.stratum is None and (metrics is None or each.metric in metrics)
    ]
    blocks = [
        Block(
            f"{metric(key).title}, {metric(key).hint}",
            [_comparison_row(each, report.bootstrap.replicates) for each in group],
        )
        for key, group in grouped((each.metric, each) for each in chosen)
    ]
    under = PROTOCOL_TITLES[protocol].lower()
    caption = f"Each arm minus {report.baseline}, paired on the same draws of users, {under}."
    return Table(caption, columns, blocks)


def _comparison_row(each: Comparison, replicates: int) -> list[Cell]:
    return [
        Cell(each.arm),
        Cell(signed(each.difference), (interval(each.low, each.high, with_sign=True),)),
        verdict_cell(each),
        Cell(p_value(each.p, replicates)),
        Cell(corrected_p_value(each.p_holm, each.p, replicates)),
        Cell(figure(each.smallest_detectable)),
    ]


def verdict_cell(each: Comparison) -> Cell:
    """Return the verdict in its colour."""
    return Cell(each.verdict, (), f"text {VERDICT_CSS[each.verdict]}")


def strata_table(report: Report, dimension: str) -> Table:
    """Return the sliced metrics of every arm in the slices of one dimension, with paired differences."""
    strata = [stratum for stratum in report.strata if stratum.dimension == dimension]
    differences = {(each.stratum, each.arm, each.metric): each for each in report.comparisons}
    compared = {name for _, _, name in differences}
    columns = [Column("Arm")]
    for key in strata[0].metrics:
        name = metric(key).title
        columns += [
            Column(name),
            *([Column(f"{name} − baseline", "with verdict")] if key in compared else []),
        ]
    blocks: list[Block] = []
    for stratum in strata:
        rows: list[list[Cell]] = []
        for arm in report.arms:
            row = [Cell(arm.name)]
            for key, values in stratum.metrics.items():
                row.append(estimate_cell(key, values[arm.name], with_valid=False))
                if key in compared:
                    row.append(_difference_cell(differences.get((stratum.key, arm.name, key))))
            rows.append(row)
        blocks.append(Block(f"{stratum.title}: {told_sizes(stratum.counts)}", rows))
    under = PROTOCOL_TITLES[report.scores[0].protocol].lower()
    return Table(f"Test part by {DIMENSIONS[dimension]}, {under}.", columns, blocks)


def told_sizes(counts: Counts) -> str:
    """Return how large the test part or a slice is."""
    if isinstance(counts, RowCounts):
        return (
            f"{things(counts.rows, 'row')}, {count(counts.positives)} positive, "
            f"{things(counts.users, 'user')}, {count(counts.gauc_users)} of them in GAUC"
        )
    return f"{things(counts.targets, 'test item')} of {things(counts.users, 'user')}"


def _difference_cell(each: Comparison | None) -> Cell:
    if each is None:
        return Cell(NONE)
    lines = (interval(each.low, each.high, with_sign=True), each.verdict)
    return Cell(signed(each.difference), lines, VERDICT_CSS[each.verdict])


def calibration_table(report: Report) -> Table:
    """Return predicted and observed share of positives by group of rows."""
    columns = [Column("Group"), Column("Predicted"), Column("Observed"), Column("Rows")]
    blocks = [
        Block(
            each.arm,
            [
                [
                    Cell(str(index)),
                    Cell(figure(part.predicted)),
                    Cell(figure(part.observed)),
                    Cell(count(part.rows)),
                ]
                for index, part in enumerate(each.calibration, start=1)
            ],
        )
        for each in report.curves
    ]
    return Table("Rows in ten groups of equal size by predicted probability, seeds pooled.", columns, blocks)


def grouped(pairs: Iterable[tuple[str, T]]) -> list[tuple[str, list[T]]]:
    """Return values by key, keys and values in the order in which they came."""
    groups: dict[str, list[T]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return list(groups.items())
