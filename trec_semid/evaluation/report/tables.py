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
    duration,
    figure,
    interval,
    p_value,
    share,
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
        Column("Difference", "arm − baseline"),
        Column("95 % interval"),
        Column("p"),
        Column("Smallest detectable", "80 % power, 5 % level"),
        Column("Verdict", is_text=True),
    ]
    chosen = [each for each in report.comparisons if each.protocol == protocol and each.stratum is None]
    blocks = [
        Block(f"{metric(key).title}, {metric(key).hint}", [_comparison_row(each) for each in group])
        for key, group in _grouped((each.metric, each) for each in chosen)
    ]
    caption = f"Paired differences from {report.baseline} on the same draws of users, {protocol} protocol."
    return Table(caption, columns, blocks)


def _comparison_row(each: Comparison) -> list[Cell]:
    return [
        Cell(each.arm),
        Cell(signed(each.difference)),
        Cell(interval(each.low, each.high, with_sign=True)),
        Cell(p_value(each.p)),
        Cell(figure(each.smallest_detectable)),
        verdict_cell(each),
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


def split_table(report: Report) -> Table:
    """Return the sizes of train, valid and test and what training never saw."""
    titles = (
        "Part",
        "Events",
        "Positive",
        "Users",
        "Unseen users",
        "Items",
        "Unseen items",
        "Events on unseen",
    )
    rows: list[list[Cell]] = []
    for name, part in report.dataset.splits.items():
        positives = NONE if part.positives is None else f"{count(part.positives)}"
        of_positives = () if part.positives is None else (share(part.positives, part.events),)
        rows.append(
            [
                Cell(name),
                Cell(count(part.events)),
                Cell(positives, of_positives),
                Cell(count(part.users)),
                Cell(count(part.unseen_users), (share(part.unseen_users, part.users),)),
                Cell(count(part.items)),
                Cell(count(part.unseen_items), (share(part.unseen_items, part.items),)),
                Cell(count(part.unseen_item_events), (share(part.unseen_item_events, part.events),)),
            ]
        )
    caption = "Sizes of the parts. Unseen: without a single training event."
    return Table(caption, [Column(title) for title in titles], [Block("", rows)])


def modality_table(report: Report) -> Table:
    """Return the content vectors of the dataset and how many items have them."""
    columns = [Column("Modality"), Column("Width"), Column("Items with it"), Column("Source", is_text=True)]
    rows = [
        [
            Cell(name),
            Cell(str(facts.dim), (facts.dtype,)),
            Cell(count(facts.present), (share(facts.present, report.dataset.num_items),)),
            Cell(facts.source, (), "text"),
        ]
        for name, facts in report.dataset.modalities.items()
    ]
    return Table("Content of items.", columns, [Block("", rows)])


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


def training_table(report: Report) -> Table:
    """Return where every rank run ended and which step it kept."""
    titles = ("Run", "Steps", "Last loss", "Best step", "Valid GAUC there", "Valid AUC there")
    rows: list[list[Cell]] = []
    for each in report.learning:
        loss = each.scalars.get("train/loss", [])
        at_best = {name: dict(points).get(each.best_step or 0) for name, points in each.scalars.items()}
        rows.append(
            [
                Cell(each.arm, (f"seed {each.seed}",)),
                Cell(count(max((step for points in each.scalars.values() for step, _ in points), default=0))),
                Cell(figure(loss[-1][1] if loss else None)),
                Cell(NONE if each.best_step is None else count(each.best_step)),
                Cell(figure(at_best.get("valid/gauc"))),
                Cell(figure(at_best.get("valid/auc"))),
            ]
        )
    caption = "Training of every rank run; metrics are those logged at the step that was kept."
    return Table(caption, [Column(title) for title in titles], [Block("", rows)])


def run_table(report: Report) -> Table:
    """Return how every run was made."""
    columns = [
        Column("Run"),
        Column("Arm", is_text=True),
        Column("Seed"),
        Column("Wall time"),
        Column("Commit"),
        Column("Config checksum"),
    ]
    blocks = [
        Block(
            f"{job} runs",
            [
                [
                    Cell(run.run),
                    Cell(run.arm, (), "text"),
                    Cell(str(run.seed)),
                    Cell(duration(run.wall_s)),
                    Cell(run.commit),
                    Cell(run.config_checksum[:12]),
                ]
                for run in runs
            ],
        )
        for job, runs in _grouped((run.job, run) for run in report.runs)
    ]
    return Table("Runs of this report.", columns, blocks)


def _grouped(pairs: Iterable[tuple[str, T]]) -> list[tuple[str, list[T]]]:
    groups: dict[str, list[T]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return list(groups.items())
