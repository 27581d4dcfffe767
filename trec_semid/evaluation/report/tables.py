"""Tables of the report: cells of text, shown by the page and by the Markdown alike."""

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from trec_semid.evaluation.report.content import (
    NOT_DISTINGUISHABLE,
    Comparison,
    Estimate,
    Report,
    Scores,
)
from trec_semid.evaluation.report.definitions import METRICS, SLICED, metric
from trec_semid.evaluation.report.words import (
    NONE,
    count,
    figure,
    interval,
    p_value,
    signed,
    things,
)

T = TypeVar("T")
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


class Table(NamedTuple):
    """A table with its caption."""

    caption: str
    columns: list[Column]
    blocks: list[Block]


def arm_table(report: Report) -> Table:
    """Return what each arm is."""
    columns = [
        Column("Arm"),
        Column("Item as", is_text=True),
        Column("Tokenizer", is_text=True),
        Column("Seeds", is_text=True),
        Column("Weights", "dense"),
        Column("Weights", "in tables"),
    ]
    shown = {"item": "item ID", "semantic": "semantic ID", "both": "item ID and semantic ID"}
    rows = [
        [
            Cell(arm.name, ("baseline",) if arm.is_baseline else ()),
            Cell(shown.get(arm.representation, arm.representation), (), "text"),
            Cell(arm.tokenizer or NONE, (), "text"),
            Cell(", ".join(map(str, arm.seeds)), (), "text"),
            Cell(count(arm.parameters["dense"]) if "dense" in arm.parameters else NONE),
            Cell(count(arm.parameters["tables"]) if "tables" in arm.parameters else NONE),
        ]
        for arm in report.arms
    ]
    return Table(
        "What was compared: arms differ in their config, runs of an arm in their seed.",
        columns,
        [Block("", rows)],
    )


def metric_table(report: Report, scores: Scores) -> Table:
    """Return one row per arm with every metric under one protocol."""
    columns = [Column("Arm"), *(Column(each.title, each.hint) for each in METRICS)]
    rows = [
        [
            Cell(arm.name, ("baseline",) if arm.is_baseline else ()),
            *(estimate_cell(scores.metrics[each.key][arm.name]) for each in METRICS),
        ]
        for arm in report.arms
    ]
    caption = (
        "Test part. First line: mean over seeds ± standard deviation; second: 95 % interval; "
        "third: the same metric on the validation part. Marked: better than every other arm by more than "
        "could be chance."
    )
    return Table(caption, columns, [Block("", rows)])


def estimate_cell(estimate: Estimate, *, with_valid: bool = True) -> Cell:
    """Return the cell of one arm's metric."""
    if estimate.value is None:
        return Cell(NONE, ("not defined",))
    spread = "" if estimate.sd is None else f" ± {figure(estimate.sd)}"
    lines = ["too few users" if estimate.low is None else interval(estimate.low, estimate.high)]
    if with_valid and estimate.valid is not None:
        lines.append(f"valid {figure(estimate.valid)}")
    return Cell(f"{figure(estimate.value)}{spread}", tuple(lines), "best" if estimate.is_best else "")


def comparison_table(report: Report, protocol: str) -> Table:
    """Return every arm's paired difference from the baseline, metric by metric."""
    columns = [
        Column("Arm"),
        Column("Difference", "95 % interval"),
        Column("Verdict", is_text=True),
        Column("p"),
        Column("Smallest detectable", "80 % power, 5 % level"),
    ]
    chosen = [each for each in report.comparisons if each.protocol == protocol and each.stratum is None]
    blocks = [
        Block(
            f"{metric(key).title}, {metric(key).hint}",
            [_comparison_row(each, report.bootstrap.replicates) for each in group],
        )
        for key, group in grouped((each.metric, each) for each in chosen)
    ]
    caption = f"Each arm minus {report.baseline}, paired on the same draws of users, {protocol} protocol."
    return Table(caption, columns, blocks)


def _comparison_row(each: Comparison, replicates: int) -> list[Cell]:
    return [
        Cell(each.arm),
        Cell(signed(each.difference), (interval(each.low, each.high, with_sign=True),)),
        verdict_cell(each),
        Cell(p_value(each.p, replicates)),
        Cell(figure(each.smallest_detectable)),
    ]


def verdict_cell(each: Comparison) -> Cell:
    """Return the verdict in its colour."""
    return Cell(each.verdict, (), f"text {VERDICT_CSS[each.verdict]}")


def strata_table(report: Report, dimension: str) -> Table:
    """Return AUC and GAUC of every arm in the slices of one dimension, with paired differences."""
    columns = [Column("Arm")]
    for key in SLICED:
        columns += [Column(metric(key).title), Column(f"{metric(key).title} − baseline", "with verdict")]
    differences = {(each.stratum, each.arm, each.metric): each for each in report.comparisons}
    blocks: list[Block] = []
    for stratum in report.strata:
        if stratum.dimension != dimension:
            continue
        rows: list[list[Cell]] = []
        for arm in report.arms:
            row = [Cell(arm.name)]
            for key in SLICED:
                row.append(estimate_cell(stratum.metrics[key][arm.name], with_valid=False))
                row.append(_difference_cell(differences.get((stratum.key, arm.name, key))))
            rows.append(row)
        sizes = (
            f"{count(stratum.rows)} rows, {count(stratum.positives)} positive, "
            f"{things(stratum.users, 'user')}, {count(stratum.gauc_users)} of them in GAUC"
        )
        blocks.append(Block(f"{stratum.title}: {sizes}", rows))
    return Table(f"Test part by {dimension}, online protocol.", columns, blocks)


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
