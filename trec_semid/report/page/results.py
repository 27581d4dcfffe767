"""Tables and pictures of what was measured, whatever the kind of runs: each picture has its table."""

from collections.abc import Collection, Sequence

from markupsafe import Markup

from trec_semid.report.content import NOT_DISTINGUISHABLE, Arm, Comparison, Estimate, Protocol, Report, Scores
from trec_semid.report.page.drawing import Dot, Row, draw_dots
from trec_semid.report.page.parts import Block, Cell, Column, Legend, Table, grouped
from trec_semid.report.words import (
    NONE,
    PROTOCOL_TITLES,
    Metric,
    corrected_p_value,
    count,
    figure,
    interval,
    metric,
    p_value,
    signed,
)

TEST_WORDS = (
    "Each arm against the baseline on the same users: users are drawn again and again, and both arms are "
    "measured on the same draw. Where the difference is smaller than the smallest detectable one, or its "
    "corrected p is 0.05 or more, the verdict is 'not distinguishable': this data cannot tell such arms "
    "apart, which does not say that they are equal. p values are two-sided; the corrected ones take into "
    "account how many arms are compared in a metric (Holm)."
)
METRIC_CAPTION = (
    "Test part. First line: mean over seeds ± standard deviation; second: 95 % interval; third: the same "
    "metric on the validation part. Marked: better than every other arm by more than could be chance."
)
DIMENSIONS = {"popularity": "item popularity", "activity": "user activity"}
VERDICT_CSS = {"better": "better", "worse": "worse", NOT_DISTINGUISHABLE: "same"}


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
        blocks.append(Block(f"{stratum.title}: {stratum.counts.told}", rows))
    under = PROTOCOL_TITLES[report.scores[0].protocol].lower()
    return Table(f"Test part by {DIMENSIONS[dimension]}, {under}.", columns, blocks)


def _difference_cell(each: Comparison | None) -> Cell:
    if each is None:
        return Cell(NONE)
    lines = (interval(each.low, each.high, with_sign=True), each.verdict)
    return Cell(signed(each.difference), lines, VERDICT_CSS[each.verdict])


def arm_legend(report: Report, names: Collection[str] | None = None) -> Legend:
    """Return which mark and colour stand for which arm, or for which of the named ones."""
    shown = [arm for arm in report.arms if names is None or arm.name in names]
    marks = [(arm.series, f"{arm.name} (baseline)" if arm.is_baseline else arm.name) for arm in shown]
    return Legend("Arms", marks)


def difference_picture(report: Report) -> Markup | None:
    """Return the arms' differences from the baseline in the headline metric; None without other arms."""
    chosen = [each for each in _main_comparisons(report) if each.stratum is None]
    if not chosen:
        return None
    series = {arm.name: arm.series for arm in report.arms}
    rows = [Row(each.arm, each.verdict, [_difference_dot(each, series[each.arm])]) for each in chosen]
    name = _main_title(report)
    title = f"{name} of each arm minus {name} of {report.baseline}, with 95 % intervals"
    return draw_dots(rows, title, f"{name} minus that of the baseline", line_at=0)


def metric_picture(report: Report, key: str) -> Markup | None:
    """Return every arm's value of a metric under the first protocol; None where it has no interval."""
    values = report.scores[0].metrics[key]
    rows = [Row(arm.name, "", dots) for arm in report.arms if (dots := _dots([arm], values))]
    name = metric(key).title
    return draw_dots(rows, f"{name} by arm with 95 % intervals", name) if rows else None


def strata_picture(report: Report, dimension: str, key: str) -> Markup | None:
    """Return a metric by slice and arm, without slices of too few users; None where no slice is left."""
    rows: list[Row] = []
    for stratum in report.strata:
        dots = _dots(report.arms, stratum.metrics[key]) if stratum.dimension == dimension else []
        if dots:
            rows.append(Row(stratum.title, stratum.counts.short, dots))
    name = metric(key).title
    return draw_dots(rows, f"{name} by {dimension} and arm with 95 % intervals", name) if rows else None


def strata_difference_picture(report: Report, dimension: str, key: str) -> Markup | None:
    """Return the arms' differences from the baseline by slice; None where no slice has any."""
    series = {arm.name: arm.series for arm in report.arms}
    rows: list[Row] = []
    for stratum in report.strata:
        chosen = [each for each in report.comparisons if (each.stratum, each.metric) == (stratum.key, key)]
        if chosen and stratum.dimension == dimension:
            dots = [_difference_dot(each, series[each.arm]) for each in chosen]
            rows.append(Row(stratum.title, stratum.counts.short, dots))
    name = metric(key).title
    title = f"{name} of each arm minus {name} of {report.baseline} by {dimension}, with 95 % intervals"
    return draw_dots(rows, title, f"{name} minus that of the baseline", line_at=0) if rows else None


def sliced_dimensions(report: Report) -> list[str]:
    """Return the dimensions that have slices, in order."""
    return list(dict.fromkeys(stratum.dimension for stratum in report.strata))


def compared_metrics(report: Report) -> list[str]:
    """Return the metrics that were compared with the baseline, in order."""
    return list(dict.fromkeys(each.metric for each in report.comparisons))


def _main_comparisons(report: Report) -> list[Comparison]:
    main = report.headline_metric, report.scores[0].protocol
    return [each for each in report.comparisons if (each.metric, each.protocol) == main]


def _main_title(report: Report) -> str:
    return metric(report.headline_metric or "").title


def _difference_dot(each: Comparison, series: int) -> Dot:
    told = f"{each.arm}: {signed(each.difference)} ({interval(each.low, each.high, with_sign=True)})"
    return Dot(series, each.difference, each.low, each.high, told)


def _dots(arms: Sequence[Arm], values: dict[str, Estimate]) -> list[Dot]:
    dots: list[Dot] = []
    for arm in arms:
        each = values[arm.name]
        if each.value is not None and each.low is not None and each.high is not None:
            told = f"{arm.name}: {figure(each.value)} ({interval(each.low, each.high)})"
            dots.append(Dot(arm.series, each.value, each.low, each.high, told))
    return dots
