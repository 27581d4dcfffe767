"""Measures every rank run on its own predictions: metrics, their draws under resampled users, curves."""

from collections.abc import Iterator, Sequence

import numpy as np

from trec_semid.core.arrays import Array, Float32s
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.predictions import Predictions, read_predictions
from trec_semid.evaluation.ranking import RANK_METRICS, rank_metrics, split_metrics
from trec_semid.evaluation.resampling import Draws, draw_ranker, ranker_metrics
from trec_semid.evaluation.strata import STRATA, Strata, training_strata
from trec_semid.metrics.auc import roc_curve
from trec_semid.metrics.binary import reliability
from trec_semid.report.arms import ArmRuns
from trec_semid.report.collect import FinishedRun
from trec_semid.report.content import Bin, Bootstrap, Curves, Protocol
from trec_semid.report.measure import (
    Asked,
    Key,
    Measured,
    RunMeasures,
    expect_own_metrics,
    expect_same_rows,
)
from trec_semid.runtime.logs import track

RANKING = Asked(
    protocols=("online", "frozen"),
    metrics=RANK_METRICS,
    # Normalised entropy is log loss on another scale.
    compared=("gauc", "auc", "gauc_user_mean", "log_loss"),
    sliced=("gauc", "auc"),
    headline="gauc",
    per_slice="rows",
)
NUM_BINS = 10
NUM_ROC_POINTS = 120


def measure_ranking(arms: Sequence[ArmRuns], dataset: Dataset, how: Bootstrap) -> Measured:
    """Measure every run of every arm.

    Raises:
        DataError: predictions are absent or damaged, are over other rows than those of the first run,
            or disagree with the run's `metrics.json`.
    """
    strata = training_strata(dataset)
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
        curves.append(_curves(arm.arm.name, tests))
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


def _curves(arm: str, tests: Sequence[Predictions]) -> Curves:
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
