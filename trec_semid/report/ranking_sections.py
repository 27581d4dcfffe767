"""Sections of a report on rankers: metrics under both protocols, differences, slices, calibration and ROC."""

from trec_semid.report import pictures, tables
from trec_semid.report.content import Report
from trec_semid.report.definitions import PROTOCOL_TITLES, PROTOCOLS, RANKING_METRICS
from trec_semid.report.parts import Folded, Heading, Part, Section, Words, figures
from trec_semid.report.pictures import arm_legend

TEST_WORDS = (
    "Each arm against the baseline on the same users: users are drawn again and again, and both arms are "
    "measured on the same draw. Where the difference is smaller than the smallest detectable one, or its "
    "corrected p is 0.05 or more, the verdict is 'not distinguishable': this data cannot tell such arms "
    "apart, which does not say that they are equal. p values are two-sided; the corrected ones take into "
    "account how many arms are compared in a metric (Holm)."
)
SLICE_WORDS = (
    "Test rows by how often their item occurs in training, and by how many training events their user has. "
    "A slice with few users has wide intervals; read those before the order of the dots."
)


def ranking_sections(report: Report) -> list[Section]:
    """Return what a report on rankers has of its own."""
    return [
        Section("metrics", "Metrics", _metrics(report)),
        Section("differences", "Differences", _differences(report)),
        Section("slices", "By popularity and activity", _slices(report)),
        Section("curves", "Calibration and ROC", _curves(report)),
    ]


def _metrics(report: Report) -> list[Part]:
    parts: list[Part] = [tables.arm_table(report)]
    for scores in report.scores:
        parts += [
            Heading(PROTOCOL_TITLES[scores.protocol]),
            Words(PROTOCOLS[scores.protocol], is_note=True),
            tables.metric_table(report, scores, RANKING_METRICS),
        ]
    return parts + figures(
        (pictures.metric_picture(report, "auc"), "AUC", "Test part, online protocol, with 95 % intervals."),
        (pictures.metric_picture(report, "log_loss"), "Log loss", "Lower is better."),
    )


def _differences(report: Report) -> list[Part]:
    if not report.comparisons:
        return []
    table = tables.comparison_table(report, "frozen")
    folded = Folded("The same under the frozen protocol", [table])
    return [Words(TEST_WORDS), tables.comparison_table(report, "online"), folded]


def _slices(report: Report) -> list[Part]:
    parts: list[Part] = [Words(SLICE_WORDS), arm_legend(report)]
    for dimension in pictures.sliced_dimensions(report):
        said = "Online protocol, with 95 % intervals."
        parts += [
            Heading(f"By {tables.DIMENSIONS[dimension]}"),
            *figures(
                (pictures.strata_picture(report, dimension, "gauc"), "GAUC", said),
                (pictures.strata_picture(report, dimension, "auc"), "AUC", said),
            ),
            tables.strata_table(report, dimension),
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
            (pictures.calibration_picture(report), "Calibration", calibration),
            (pictures.roc_picture(report), "ROC", roc),
        ),
        Folded("Calibration as a table", [tables.calibration_table(report)]),
    ]
