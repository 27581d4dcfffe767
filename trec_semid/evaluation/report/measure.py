"""Measures every rank run on its own predictions: metrics, their draws under resampled users, curves."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trec_semid.core.errors import DataError
from trec_semid.core.logs import track
from trec_semid.core.paths import join
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.predictions import Predictions, read_predictions
from trec_semid.evaluation.ranking import RANK_METRICS, rank_metrics, split_metrics
from trec_semid.evaluation.report.arms import ArmRuns
from trec_semid.evaluation.report.collect import FinishedRun
from trec_semid.evaluation.report.content import Bin, Bootstrap, Curves, Protocol
from trec_semid.evaluation.report.definitions import SLICED
from trec_semid.evaluation.strata import Strata, training_strata
from trec_semid.metrics.auc import roc_curve
from trec_semid.metrics.binary import reliability
from trec_semid.metrics.intervals import Replicates, bootstrap

NUM_BINS = 10
NUM_ROC_POINTS = 120
MIN_REPLICATES = 200
MAX_ROW_DRAWS = 1_000_000_000
"""Rows × runs × replicates that a report may cost: about two minutes on one core."""
TOLERANCE = 1e-5
"""How far a metric of `metrics.json` may lie from the one taken from the predictions."""


class Key(NamedTuple):
    """Which number."""

    protocol: Protocol
    stratum: str | None
    metric: str


class RunMeasures(NamedTuple):
    """What one run's predictions say."""

    test: dict[Key, Replicates]
    """Undefined metrics, and slices of fewer than two users, are absent."""
    valid: dict[Key, float]
    counts: dict[str, int]
    """Of the test part, as in `metrics.json` without the part's name."""


class ArmMeasures(NamedTuple):
    """What the runs of one arm say, in the order of their seeds, and the curves of all of them."""

    runs: list[RunMeasures]
    curves: Curves


def measure_arms(arms: Sequence[ArmRuns], dataset: Dataset, how: Bootstrap) -> list[ArmMeasures]:
    """Measure every run of every arm.

    Raises:
        DataError: predictions are absent or damaged, are over other rows than those of the first run,
            or disagree with the run's `metrics.json`.
    """
    strata = training_strata(dataset)
    total = sum(len(arm.runs) for arm in arms)
    steps = iter(track(range(total), "measuring runs", total))
    first: tuple[FinishedRun, Predictions] | None = None
    measured: list[ArmMeasures] = []
    for arm in arms:
        runs: list[RunMeasures] = []
        tests: list[Predictions] = []
        for run in arm.runs:
            test, valid = read_predictions(run.uri, "test"), read_predictions(run.uri, "valid")
            first = first or (run, test)
            _expect_same_rows(run, test, *first)
            _expect_own_metrics(run, test)
            runs.append(_measure_run(test, valid, strata, how))
            tests.append(test)
            next(steps)
        measured.append(ArmMeasures(runs, _curves(arm.arm.name, tests)))
    return measured


def choose_replicates(wanted: int, num_rows: int, num_runs: int) -> int:
    """Return how many draws of users to make: those wanted, or fewer where the test part is large."""
    affordable = MAX_ROW_DRAWS // max(num_rows * num_runs, 1)
    return min(wanted, max(MIN_REPLICATES, affordable))


def _measure_run(test: Predictions, valid: Predictions, strata: Strata, how: Bootstrap) -> RunMeasures:
    replicates: dict[Key, Replicates] = {}
    for protocol, stratum, mask, names in _slices(test, strata):
        score = test.score if protocol == "online" else test.score_frozen
        found = bootstrap(
            score[mask],
            test.label[mask],
            test.user_row[mask],
            metrics=names,
            num_replicates=how.replicates,
            seed=how.seed,
        )
        replicates |= {Key(protocol, stratum, name): value for name, value in found.items()}
    _, counts = rank_metrics(test.score, test.label, test.user_row, test.item_row, strata)
    on_valid: dict[Key, float] = {}
    for protocol, scores in _by_protocol(valid):
        metrics, _ = rank_metrics(scores, valid.label, valid.user_row)
        on_valid |= {Key(protocol, None, name): value for name, value in metrics.items()}
    return RunMeasures(replicates, on_valid, counts)


def _by_protocol(predictions: Predictions) -> Iterator[tuple[Protocol, NDArray[np.float32]]]:
    yield "online", predictions.score
    yield "frozen", predictions.score_frozen


def _slices(test: Predictions, strata: Strata) -> Iterator[tuple[Protocol, str | None, Any, Sequence[str]]]:
    everything = slice(None)
    yield "online", None, everything, RANK_METRICS
    yield "frozen", None, everything, RANK_METRICS
    for name, mask in strata.masks(test.user_row, test.item_row):
        yield "online", name, mask, SLICED


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


def _expect_same_rows(
    run: FinishedRun, test: Predictions, first: FinishedRun, first_test: Predictions
) -> None:
    for name in ("user_row", "item_row", "label"):
        if not np.array_equal(getattr(test, name), getattr(first_test, name)):
            raise DataError(
                f"the test rows of this run are not those of run '{first.name}'",
                file=join(run.uri, "predictions"),
                field=name,
                remedy="Run both again on the same dataset",
            )


def _expect_own_metrics(run: FinishedRun, test: Predictions) -> None:
    """Refuse a run whose metrics were not taken from the predictions that lie beside them."""
    stated = run.result["metrics"]
    found, _ = split_metrics("test", test)
    for key, value in found.items():
        if key in stated and abs(stated[key] - value) > TOLERANCE * max(1.0, abs(value)):
            raise DataError(
                f"the run's predictions give {value:.6f}: metrics and predictions are not of one run",
                file=join(run.uri, "metrics.json"),
                field=key,
                value=stated[key],
                remedy="Run it again",
            )
