"""Sets the arms side by side: estimates over seeds, paired differences, slices."""

from collections.abc import Mapping, Sequence

import numpy as np

from trec_semid.evaluation.report.arms import ArmRuns
from trec_semid.evaluation.report.content import (
    NOT_DISTINGUISHABLE,
    Comparison,
    Counts,
    Estimate,
    RowCounts,
    Scores,
    Stratum,
    TargetCounts,
    Verdict,
)
from trec_semid.evaluation.report.definitions import MIN_USERS, STRATA, limits, metric
from trec_semid.evaluation.report.measure import Key, Measured, RunMeasures
from trec_semid.metrics.intervals import Difference, Replicates, difference, interval

NOTHING = Estimate(value=None, sd=None, low=None, high=None, by_seed=[])


def compare_scores(arms: Sequence[ArmRuns], measured: Measured) -> list[Scores]:
    """Return every metric of every arm, protocol by protocol."""
    return [
        Scores(
            protocol=protocol,
            metrics={
                name: _estimates(arms, measured, Key(protocol, None, name)) for name in measured.asked.metrics
            },
        )
        for protocol in measured.asked.protocols
    ]


def compare_strata(arms: Sequence[ArmRuns], measured: Measured) -> list[Stratum]:
    """Return the sliced metrics of every arm in every slice that is not empty."""
    asked, counts = measured.asked, measured.arms[0][0].counts
    return [
        Stratum(
            dimension=dimension,
            key=key,
            title=title,
            counts=read_counts(counts, f"/{key}"),
            metrics={
                name: _estimates(arms, measured, Key(asked.protocols[0], key, name))
                for name in asked.sliced
                if metric(name).is_by_user or dimension == "popularity"
            },
        )
        for key, (dimension, title) in STRATA.items()
        if counts[f"{asked.per_slice}/{key}"]
    ]


def compare_with_baseline(arms: Sequence[ArmRuns], measured: Measured) -> list[Comparison]:
    """Return the paired difference of every other arm from the first, which is the baseline."""
    asked = measured.asked
    keys = [Key(protocol, None, name) for protocol in asked.protocols for name in asked.compared]
    keys += [
        Key(asked.protocols[0], stratum, name)
        for stratum in STRATA
        for name in asked.sliced
        if name in asked.compared
    ]
    found: list[Comparison] = []
    for key in keys:
        base = _replicates(measured.arms[0], key)
        if not base or not _has_enough_users(measured.arms[0], key):
            continue
        for arm, runs in zip(arms[1:], measured.arms[1:], strict=True):
            paired = difference(_replicates(runs, key), base)
            found.append(_comparison(key, arm.arm.name, arms[0].arm.name, paired))
    return found


def read_counts(counts: Mapping[str, int], suffix: str = "") -> Counts:
    """Return the sizes of the test part, or of a slice, whose names end so."""
    kind = TargetCounts if "targets" in counts else RowCounts
    return kind(**{name: counts[f"{name}{suffix}"] for name in kind.model_fields})


def _comparison(key: Key, arm: str, baseline: str, found: Difference) -> Comparison:
    return Comparison(
        arm=arm,
        baseline=baseline,
        protocol=key.protocol,
        stratum=key.stratum,
        metric=key.metric,
        difference=found.value,
        low=found.low,
        high=found.high,
        p=found.p_value,
        smallest_detectable=found.smallest_detectable,
        verdict=_verdict(found, higher_is_better=metric(key.metric).better == "high"),
    )


def _verdict(found: Difference, *, higher_is_better: bool) -> Verdict:
    if not found.is_distinguishable:
        return NOT_DISTINGUISHABLE
    return "better" if (found.value > 0) == higher_is_better else "worse"


def _replicates(runs: Sequence[RunMeasures], key: Key) -> list[Replicates]:
    """Return a number's draws by seed; empty where it is not defined, which the rows alone decide."""
    return [run.test[key] for run in runs if key in run.test]


def _has_enough_users(runs: Sequence[RunMeasures], key: Key) -> bool:
    kind = "gauc_users" if key.metric.startswith("gauc") else "users"
    name = f"{kind}/{key.stratum}" if key.stratum else kind
    return runs[0].counts[name] >= MIN_USERS


def _estimates(arms: Sequence[ArmRuns], measured: Measured, key: Key) -> dict[str, Estimate]:
    draws = [_replicates(runs, key) for runs in measured.arms]
    is_enough = _has_enough_users(measured.arms[0], key)
    best = _best(draws, key.metric) if is_enough else None
    estimates: dict[str, Estimate] = {}
    for index, (arm, runs) in enumerate(zip(arms, measured.arms, strict=True)):
        values = [each.value for each in draws[index]] or _undrawn(runs, key)
        ends = _ends(draws[index], key.metric) if is_enough and draws[index] else None
        valid = [run.valid[key] for run in runs if key in run.valid]
        found = _estimate(values, ends, valid) if values else NOTHING
        estimates[arm.arm.name] = found.model_copy(update={"is_best": index == best})
    return estimates


def _undrawn(runs: Sequence[RunMeasures], key: Key) -> list[float]:
    return [run.undrawn[key] for run in runs if key in run.undrawn]


def _ends(seeds: Sequence[Replicates], name: str) -> tuple[float, float]:
    found, (least, most) = interval(seeds), limits(name)
    # What seeds add to a draw is symmetric and may lie beyond what the metric can be.
    return max(found.low, least), min(found.high, most)


def _estimate(values: Sequence[float], ends: tuple[float, float] | None, valid: Sequence[float]) -> Estimate:
    return Estimate(
        value=float(np.mean(values)),
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        low=ends[0] if ends else None,
        high=ends[1] if ends else None,
        by_seed=list(values),
        valid=float(np.mean(valid)) if valid else None,
    )


def _best(draws: Sequence[Sequence[Replicates]], name: str) -> int | None:
    """Return which arm is distinguishably better than every other; None where there is none."""
    if len(draws) < 2 or not all(draws):
        return None
    costs = [[_cost(each, name) for each in seeds] for seeds in draws]
    means = [np.mean([each.value for each in seeds]) for seeds in costs]
    best = int(np.argmin(means))
    others = [index for index in range(len(draws)) if index != best]
    beats_all = all(difference(costs[best], costs[other]).is_distinguishable for other in others)
    return best if beats_all else None


def _cost(each: Replicates, name: str) -> Replicates:
    """Return a metric as a cost: smaller is better, and calibration is its distance from 1."""
    better = metric(name).better
    if better == "low":
        return each
    if better == "high":
        return each._replace(value=-each.value, draws=-each.draws)
    return each._replace(value=abs(each.value - 1), draws=np.abs(each.draws - 1))
