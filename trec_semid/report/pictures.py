"""Which pictures the report holds, drawn from its numbers."""

from collections.abc import Collection, Sequence

from markupsafe import Markup

from trec_semid.report.content import (
    CHURN_OF_POSITION,
    Arm,
    Comparison,
    Counts,
    Estimate,
    Report,
    RowCounts,
)
from trec_semid.report.definitions import metric
from trec_semid.report.drawing import Curve, Dot, Row, draw_curves, draw_dots
from trec_semid.report.parts import Legend
from trec_semid.report.words import count, figure, interval, signed, things


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
            rows.append(Row(stratum.title, _size(stratum.counts), dots))
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
            rows.append(Row(stratum.title, _size(stratum.counts), dots))
    name = metric(key).title
    title = f"{name} of each arm minus {name} of {report.baseline} by {dimension}, with 95 % intervals"
    return draw_dots(rows, title, f"{name} minus that of the baseline", line_at=0) if rows else None


def calibration_picture(report: Report) -> Markup:
    """Return observed share of positives by predicted probability."""
    series = {arm.name: arm.series for arm in report.arms}
    curves = [
        Curve(
            series[each.arm],
            [part.predicted for part in each.calibration],
            [part.observed for part in each.calibration],
            each.arm,
        )
        for each in report.curves
    ]
    title = "Observed share of positives by predicted probability, one line per arm"
    return draw_curves(curves, title, "predicted probability", diagonal=True, dots=True)


def roc_picture(report: Report) -> Markup:
    """Return the ROC curves."""
    series = {arm.name: arm.series for arm in report.arms}
    curves = [
        Curve(series[each.arm], each.false_positive_rate, each.true_positive_rate, each.arm)
        for each in report.curves
    ]
    title = "True positive rate by false positive rate, one line per arm"
    return draw_curves(curves, title, "false positive rate", diagonal=True)


def reach_picture(report: Report) -> Markup:
    """Return recall by length of the list, on a scale of powers."""
    series = {arm.name: arm.series for arm in report.arms}
    cutoffs = {float(key.partition("@")[2]) for key in report.scores[0].metrics}
    curves: list[Curve] = []
    for each in report.reach:
        xs = [float(length) for length in each.lengths]
        marks = [point for point in zip(xs, each.recall, strict=True) if point[0] in cutoffs]
        curves.append(Curve(series[each.arm], xs, each.recall, each.arm, marks))
    title = "Recall at N by N, the length of the list, one line per arm"
    return draw_curves(curves, title, "N, length of the list", powers=True)


def churn_positions(report: Report) -> list[str]:
    """Return the scalars that tell of single positions' churn, in the order they were logged."""
    names = dict.fromkeys(name for each in report.learning for name in each.scalars)
    return [name for name in names if name.startswith(CHURN_OF_POSITION)]


def learning_picture(report: Report, scalar: str) -> Markup | None:
    """Return a logged scalar by step, one line per run, best steps marked; None where nobody logged it."""
    series = {arm.name: arm.series for arm in report.arms}
    curves: list[Curve] = []
    for each in report.learning:
        points = each.scalars.get(scalar, [])
        if points:
            xs, ys = [float(step) for step, _ in points], [value for _, value in points]
            marks = [point for point in zip(xs, ys, strict=True) if point[0] == each.best_step]
            curves.append(Curve(series[each.arm], xs, ys, f"{each.arm}, seed {each.seed}", marks))
    return draw_curves(curves, f"{scalar} by training step, one line per run", "step") if curves else None


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


def _size(counts: Counts) -> str:
    if isinstance(counts, RowCounts):
        return f"{count(counts.rows)} rows"
    return things(counts.targets, "item")


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
