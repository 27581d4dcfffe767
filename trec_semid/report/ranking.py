"""What a report on rankers has of its own: its arms, metrics by protocol, calibration and ROC."""

from collections.abc import Sequence

from markupsafe import Markup

from trec_semid.report import results
from trec_semid.report.arms import ArmRuns, Description
from trec_semid.report.collect import FinishedRun
from trec_semid.report.content import Report
from trec_semid.report.definitions import PROTOCOL_TITLES, PROTOCOLS, RANKING_METRICS
from trec_semid.report.drawing import Curve, draw_curves
from trec_semid.report.parts import Block, Cell, Column, Folded, Heading, Part, Section, Table, Words, figures
from trec_semid.report.results import TEST_WORDS, arm_legend
from trec_semid.report.words import count, figure

ITEM_IDS = "item"
"""Representation of a ranker that reads item IDs alone."""

SLICE_WORDS = (
    "Test rows by how often their item occurs in training, and by how many training events their user has. "
    "A slice with few users has wide intervals; read those before the order of the dots."
)


def describe_rankers(runs: Sequence[FinishedRun], tokenizers: Sequence[str | None]) -> list[Description]:
    """Return what each arm is, such as `both · mmq`: what stands for an item, and whose codes.

    Args:
        runs: one run of every arm.
        tokenizers: kinds of the tokenizers that they read.
    """
    described: list[Description] = []
    for run, tokenizer in zip(runs, tokenizers, strict=True):
        representation = str(run.config.get("representation", ITEM_IDS))
        codes = [tokenizer] if tokenizer and representation != ITEM_IDS else []
        described.append(Description([representation, *codes], representation))
    return described


def usual_ranker(arms: Sequence[ArmRuns]) -> ArmRuns:
    """Return the arm that reads item IDs alone, else the first by name."""
    by_name = sorted(arms, key=lambda each: each.arm.name)
    return next((each for each in by_name if each.arm.representation == ITEM_IDS), by_name[0])


def ranking_sections(report: Report) -> list[Section]:
    """Return what a report on rankers has of its own."""
    return [
        Section("metrics", "Metrics", _metrics(report)),
        Section("differences", "Differences", _differences(report)),
        Section("slices", "By popularity and activity", _slices(report)),
        Section("curves", "Calibration and ROC", _curves(report)),
    ]


def _metrics(report: Report) -> list[Part]:
    parts: list[Part] = [results.arm_table(report)]
    for scores in report.scores:
        parts += [
            Heading(PROTOCOL_TITLES[scores.protocol]),
            Words(PROTOCOLS[scores.protocol], is_note=True),
            results.metric_table(report, scores, RANKING_METRICS),
        ]
    return parts + figures(
        (results.metric_picture(report, "auc"), "AUC", "Test part, online protocol, with 95 % intervals."),
        (results.metric_picture(report, "log_loss"), "Log loss", "Lower is better."),
    )


def _differences(report: Report) -> list[Part]:
    if not report.comparisons:
        return []
    table = results.comparison_table(report, "frozen")
    folded = Folded("The same under the frozen protocol", [table])
    return [Words(TEST_WORDS), results.comparison_table(report, "online"), folded]


def _slices(report: Report) -> list[Part]:
    parts: list[Part] = [Words(SLICE_WORDS), arm_legend(report)]
    for dimension in results.sliced_dimensions(report):
        said = "Online protocol, with 95 % intervals."
        parts += [
            Heading(f"By {results.DIMENSIONS[dimension]}"),
            *figures(
                (results.strata_picture(report, dimension, "gauc"), "GAUC", said),
                (results.strata_picture(report, dimension, "auc"), "AUC", said),
            ),
            results.strata_table(report, dimension),
        ]
    return parts


def _curves(report: Report) -> list[Part]:
    calibration = (
        "Observed share of positives (upright) in ten groups of rows of equal size by predicted probability; "
        "the dashed line is perfect."
    )
    roc = "True positive rate (upright) by false positive rate; the dashed line is chance. Seeds are pooled."
    return [
        arm_legend(report),
        *figures(
            (_calibration_picture(report), "Calibration", calibration),
            (_roc_picture(report), "ROC", roc),
        ),
        Folded("Calibration as a table", [_calibration_table(report)]),
    ]


def _calibration_picture(report: Report) -> Markup:
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


def _roc_picture(report: Report) -> Markup:
    """Return the ROC curves."""
    series = {arm.name: arm.series for arm in report.arms}
    curves = [
        Curve(series[each.arm], each.false_positive_rate, each.true_positive_rate, each.arm)
        for each in report.curves
    ]
    title = "True positive rate by false positive rate, one line per arm"
    return draw_curves(curves, title, "false positive rate", diagonal=True)


def _calibration_table(report: Report) -> Table:
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
