"""A report on rankers: what is measured on their predictions, and their own arms, tables and pictures."""

from collections.abc import Iterator, Sequence

import numpy as np
from markupsafe import Markup

from trec_semid.core.arrays import Array, Float32s
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.evaluated import tests_then_trains
from trec_semid.evaluation.predictions import Predictions, read_predictions
from trec_semid.evaluation.ranking import RANK_METRICS, rank_metrics, split_metrics
from trec_semid.evaluation.resampling import Draws, draw_ranker, ranker_metrics
from trec_semid.evaluation.strata import STRATA, Strata, training_strata
from trec_semid.metrics.auc import roc_curve
from trec_semid.metrics.binary import reliability
from trec_semid.report.arms import ArmRuns
from trec_semid.report.collect import FinishedRun
from trec_semid.report.compare import Asked, Key, Measured, RunMeasures, expect_own_metrics, expect_same_rows
from trec_semid.report.content import Bin, Bootstrap, Curves, Protocol, Report, RowCounts
from trec_semid.report.page import results
from trec_semid.report.page.drawing import Curve, draw_curves
from trec_semid.report.page.parts import (
    Block,
    Cell,
    Column,
    Folded,
    Heading,
    Part,
    Section,
    Table,
    Words,
    figures,
)
from trec_semid.report.page.results import TEST_WORDS, arm_legend
from trec_semid.report.words import PROTOCOL_TITLES, PROTOCOLS, RANKING_METRICS, count, figure
from trec_semid.runtime.logs import track

RANKING = Asked(
    protocols=("online", "frozen"),
    metrics=RANK_METRICS,
    # Normalised entropy is log loss on another scale.
    compared=("gauc", "auc", "gauc_user_mean", "log_loss"),
    sliced=("gauc", "auc"),
    headline="gauc",
    per_slice="rows",
    counts=RowCounts,
)
NUM_BINS = 10
NUM_ROC_POINTS = 120


SLICE_WORDS = (
    "Test rows by how often their item occurs in training, and by how many training events their user has. "
    "A slice with few users has wide intervals; read those before the order of the dots."
)


def measure_ranking(arms: Sequence[ArmRuns], dataset: Dataset, how: Bootstrap) -> Measured:
    """Measure every run of every arm.

    Raises:
        DataError: predictions are absent or damaged, are over other rows than those of the first run,
            or disagree with the run's `metrics.json`.
    """
    strata = training_strata(dataset, test_then_train=tests_then_trains(arms[0].runs[0].uri))
    total = sum(len(arm.runs) for arm in arms)
    steps = iter(track(range(total), "measuring runs", total))
    first: tuple[FinishedRun, Predictions] | None = None
    measured: list[list[RunMeasures]] = []
    curves: list[Curves] = []
    for arm in arms:
        runs: list[RunMeasures] = []
        tests: list[Predictions] = []
        for run in arm.runs:
            test, valid = read_predictions(run.uri, "test"), read_predictions(run.uri, "valid")
            first = first or (run, test)
            expect_same_rows(
                run, _rows(test), first[0], _rows(first[1]), "Run both again on the same dataset"
            )
            expect_own_metrics(run, split_metrics("test", test)[0])
            runs.append(_measure_run(test, valid, strata, how))
            tests.append(test)
            next(steps)
        measured.append(runs)
        curves.append(_curves_of(arm.arm.name, tests))
    return Measured(RANKING, measured, curves=curves)


def _rows(test: Predictions) -> dict[str, Array]:
    return {name: getattr(test, name) for name in ("user_row", "item_row", "label")}


def _measure_run(test: Predictions, valid: Predictions, strata: Strata, how: Bootstrap) -> RunMeasures:
    metrics = ranker_metrics(key.name for key in _test_keys())
    draws = draw_ranker([test], metrics, [strata], Draws(how.replicates, how.seed))
    _, counts = rank_metrics(test.score, test.label, test.user_row, test.item_row, strata)
    on_valid: dict[Key, float] = {}
    for protocol, scores in _by_protocol(valid):
        metrics, _ = rank_metrics(scores, valid.label, valid.user_row)
        on_valid |= {Key(protocol, None, name): value for name, value in metrics.items()}
    return RunMeasures(draws, on_valid, counts)


def _by_protocol(predictions: Predictions) -> Iterator[tuple[Protocol, Float32s]]:
    yield "online", predictions.score
    yield "frozen", predictions.score_frozen


def _test_keys() -> list[Key]:
    """Return every number of the test part: both protocols, and the slices of the first."""
    whole = [Key(protocol, None, name) for protocol in RANKING.protocols for name in RANKING.metrics]
    return whole + [Key("online", stratum, name) for stratum in STRATA for name in RANKING.sliced]


def _curves_of(arm: str, tests: Sequence[Predictions]) -> Curves:
    scores = np.concatenate([test.score for test in tests])
    labels = np.concatenate([test.label for test in tests])
    bins = reliability(scores, labels, num_bins=NUM_BINS)
    roc = roc_curve(scores, labels, num_points=NUM_ROC_POINTS)
    return Curves(
        arm=arm,
        calibration=[
            Bin(predicted=float(predicted), observed=float(observed), rows=int(rows))
            for rows, predicted, observed in zip(*bins, strict=True)
        ],
        false_positive_rate=[round(float(value), 6) for value in roc.false_positive_share],
        true_positive_rate=[round(float(value), 6) for value in roc.true_positive_share],
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
