"""Measures the arms' runs and sets them side by side: estimates over seeds, differences, slices.

Each kind of runs says what is asked of every run and what its predictions answer (`build.KINDS`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trec_semid.core.arrays import Array
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join
from trec_semid.evaluation import comparison
from trec_semid.evaluation.comparison import MIN_USERS
from trec_semid.metrics.bootstrap import Replicates
from trec_semid.metrics.intervals import interval
from trec_semid.metrics.verdicts import Direction
from trec_semid.report.arms import ArmRuns
from trec_semid.report.collect import FinishedRun
from trec_semid.report.content import (
    NOT_DISTINGUISHABLE,
    CatalogueReach,
    Comparison,
    Counts,
    Curves,
    Estimate,
    Example,
    Protocol,
    Reach,
    RowCounts,
    Scores,
    Separation,
    ShownInterests,
    Stratum,
    TargetCounts,
    Verdict,
)
from trec_semid.report.words import STRATA, limits, metric

TOLERANCE = 1e-5
"""How far a metric of `metrics.json` may lie from the one taken from the predictions."""


class Key(NamedTuple):
    """Which number."""

    protocol: Protocol
    stratum: str | None
    metric: str

    @property
    def name(self) -> str:
        """What `metrics.json` calls the number, of the test part."""
        part = "test-frozen" if self.protocol == "frozen" else "test"
        return f"{part}/{self.metric}" + (f"/{self.stratum}" if self.stratum else "")


class Asked(NamedTuple):
    """Which numbers a report of some kind of runs holds."""

    protocols: Sequence[Protocol]
    """The one that the answer speaks of, and whose slices are shown, comes first."""
    metrics: Sequence[str]
    """On the whole test part, by arm."""
    compared: Sequence[str]
    """Those with a paired difference from the baseline."""
    sliced: Sequence[str]
    """Those by popularity and activity."""
    headline: str
    """The one that the answer speaks of."""
    per_slice: str
    """The count that says how large a slice is."""
    counts: type[RowCounts] | type[TargetCounts]
    """What sizes of the test part, and of its slices, are told by."""


class RunMeasures(NamedTuple):
    """What one run's predictions say."""

    draws: dict[str, Replicates]
    """Of the test part by `Key.name`; undefined metrics, and slices of fewer than two users, are absent."""
    valid: dict[Key, float]
    counts: dict[str, int]
    """Of the test part, as in `metrics.json` without the part's name."""
    undrawn: dict[Key, float] = {}
    """Numbers of the test part that no draw of users can give."""


class Measured(NamedTuple):
    """What all arms say, and what of it is to be shown."""

    asked: Asked
    arms: list[list[RunMeasures]]
    """Of every arm its runs, in the order of their seeds."""
    curves: list[Curves] = []
    reach: list[Reach] = []
    catalogue: list[CatalogueReach] = []
    examples: list[Example] = []
    separation: list[Separation] = []
    interests: list[ShownInterests] = []
    notes: list[str] = []


def expect_same_rows(
    run: FinishedRun,
    rows: Mapping[str, Array],
    first: FinishedRun,
    first_rows: Mapping[str, Array],
    remedy: str,
) -> None:
    """Refuse a run whose test part is not that of the first run.

    Args:
        run: the run.
        rows: columns (n,) of its predictions that have to be alike.
        first: the first run.
        first_rows: its columns.
        remedy: what to do about it.

    Raises:
        DataError: they differ.
    """
    for name, column in rows.items():
        if not np.array_equal(column, first_rows[name]):
            raise DataError(
                f"the test rows of this run are not those of run '{first.name}'",
                file=join(run.uri, "predictions"),
                field=name,
                remedy=remedy,
            )


def expect_own_metrics(run: FinishedRun, own_metrics: Mapping[str, float]) -> None:
    """Refuse a run whose metrics were not taken from the predictions that lie beside them.

    Args:
        run: the run.
        own_metrics: metrics taken from its predictions, under the names of `metrics.json`.

    Raises:
        DataError: a metric is another.
    """
    stated = run.result["metrics"]
    for key, value in own_metrics.items():
        if key in stated and abs(stated[key] - value) > TOLERANCE * max(1.0, abs(value)):
            raise DataError(
                f"the run's predictions give {value:.6f}: metrics and predictions are not of one run",
                file=join(run.uri, "metrics.json"),
                field=key,
                value=stated[key],
                remedy="Run it again",
            )


NOTHING = Estimate(value=None, sd=None, low=None, high=None, by_seed=[])


class Compared(NamedTuple):
    """The arms before the engine of comparison, and what it says of them."""

    results: Mapping[str, comparison.ArmResults]
    with_baseline: Mapping[str, Mapping[str, comparison.Comparison]]
    """Arm to name of a number (`Key.name`) to its difference from the baseline, which is the first arm."""


def compare_arms(arms: Sequence[ArmRuns], measured: Measured) -> Compared:
    """Compare every other arm with the first, which is the baseline, in all numbers that are shown so."""
    results, names = arm_results(arms, measured), [key.name for key in _compared_keys(measured)]
    return Compared(results, comparison.compare_with_baseline(results, arms[0].arm.name, names))


def list_comparisons(arms: Sequence[ArmRuns], measured: Measured, compared: Compared) -> list[Comparison]:
    """Return the comparisons with the baseline, number by number."""
    return [
        _comparison(key, arm.arm.name, arms[0].arm.name, of_arm[key.name])
        for key in _compared_keys(measured)
        for arm in arms[1:]
        if key.name in (of_arm := compared.with_baseline.get(arm.arm.name, {}))
    ]


def _compared_keys(measured: Measured) -> list[Key]:
    asked = measured.asked
    keys = [Key(protocol, None, name) for protocol in asked.protocols for name in asked.compared]
    return keys + [
        Key(asked.protocols[0], stratum, name)
        for stratum in STRATA
        for name in asked.sliced
        if name in asked.compared
    ]


def arm_results(arms: Sequence[ArmRuns], measured: Measured) -> dict[str, comparison.ArmResults]:
    """Return what the engine of comparison asks of every arm."""
    return {
        arm.arm.name: comparison.ArmResults(
            {run.seed: measures.draws for run, measures in zip(arm.runs, runs, strict=True)}
        )
        for arm, runs in zip(arms, measured.arms, strict=True)
    }


def compare_scores(arms: Sequence[ArmRuns], measured: Measured, compared: Compared) -> list[Scores]:
    """Return every metric of every arm, protocol by protocol.

    Args:
        arms: the arms.
        measured: their numbers.
        compared: with the baseline; no arm is marked as best against these verdicts.
    """
    keys = [
        Key(protocol, None, name) for protocol in measured.asked.protocols for name in measured.asked.metrics
    ]
    best = _best_arms(compared, keys)
    return [
        Scores(
            protocol=protocol,
            metrics={
                key.metric: _estimates(arms, measured, key, best.get(key.name))
                for key in keys
                if key.protocol == protocol
            },
        )
        for protocol in measured.asked.protocols
    ]


def compare_strata(arms: Sequence[ArmRuns], measured: Measured, compared: Compared) -> list[Stratum]:
    """Return the sliced metrics of every arm in every slice that is not empty; see `compare_scores`."""
    asked, counts = measured.asked, measured.arms[0][0].counts
    keys = [
        Key(asked.protocols[0], stratum, name)
        for stratum, (dimension, _) in STRATA.items()
        for name in asked.sliced
        if counts[f"{asked.per_slice}/{stratum}"] and (metric(name).is_by_user or dimension == "popularity")
    ]
    best = _best_arms(compared, keys)
    return [
        Stratum(
            dimension=dimension,
            key=stratum,
            title=title,
            counts=read_counts(asked, counts, f"/{stratum}"),
            metrics={
                key.metric: _estimates(arms, measured, key, best.get(key.name))
                for key in keys
                if key.stratum == stratum
            },
        )
        for stratum, (dimension, title) in STRATA.items()
        if counts[f"{asked.per_slice}/{stratum}"]
    ]


def read_counts(asked: Asked, counts: Mapping[str, int], suffix: str = "") -> Counts:
    """Return the sizes of the test part, or of a slice, whose names end so, as their kind tells them."""
    sizes = {name: counts[f"{name}{suffix}"] for name in asked.counts.model_fields}
    return asked.counts.model_validate(sizes)


def _comparison(key: Key, arm: str, baseline: str, each: comparison.Comparison) -> Comparison:
    return Comparison(
        arm=arm,
        baseline=baseline,
        protocol=key.protocol,
        stratum=key.stratum,
        metric=key.metric,
        difference=each.difference,
        low=each.low,
        high=each.high,
        p=each.p,
        p_holm=each.p_holm,
        smallest_detectable=each.smallest_detectable,
        verdict=_worded(each.verdict, higher_is_better=metric(key.metric).better == "high"),
    )


def _worded(direction: Direction, *, higher_is_better: bool) -> Verdict:
    if direction == NOT_DISTINGUISHABLE:
        return NOT_DISTINGUISHABLE
    return "better" if (direction == "higher") == higher_is_better else "worse"


def _replicates(runs: Sequence[RunMeasures], key: Key) -> list[Replicates]:
    """Return a number's draws by seed; empty where it is not defined, which the rows alone decide."""
    return [run.draws[key.name] for run in runs if key.name in run.draws]


def _estimates(
    arms: Sequence[ArmRuns], measured: Measured, key: Key, best: str | None
) -> dict[str, Estimate]:
    draws = [_replicates(runs, key) for runs in measured.arms]
    estimates: dict[str, Estimate] = {}
    for index, (arm, runs) in enumerate(zip(arms, measured.arms, strict=True)):
        values = [each.value for each in draws[index]] or _undrawn(runs, key)
        is_enough = bool(draws[index]) and draws[index][0].num_users >= MIN_USERS
        ends = _ends(draws[index], key.metric) if is_enough else None
        valid = [run.valid[key] for run in runs if key in run.valid]
        estimate = _estimate(values, ends, valid) if values else NOTHING
        estimates[arm.arm.name] = estimate.model_copy(update={"is_best": arm.arm.name == best})
    return estimates


def _undrawn(runs: Sequence[RunMeasures], key: Key) -> list[float]:
    return [run.undrawn[key] for run in runs if key in run.undrawn]


def _ends(seeds: Sequence[Replicates], name: str) -> tuple[float, float]:
    drawn, (least, most) = interval(seeds), limits(name)
    # What seeds add to a draw is symmetric and may lie beyond what the metric can be.
    return max(drawn.low, least), min(drawn.high, most)


def _estimate(values: Sequence[float], ends: tuple[float, float] | None, valid: Sequence[float]) -> Estimate:
    return Estimate(
        value=float(np.mean(values)),
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        low=ends[0] if ends else None,
        high=ends[1] if ends else None,
        by_seed=list(values),
        valid=float(np.mean(valid)) if valid else None,
    )


def _best_arms(compared: Compared, keys: Sequence[Key]) -> dict[str, str]:
    """Return the arm that is distinguishably better than every other, of the numbers that have one."""
    goals: dict[str, comparison.Goal] = {key.name: metric(key.metric).better for key in keys}
    baseline = next(iter(compared.results))
    return comparison.best_arms(compared.results, baseline, goals, compared.with_baseline)
