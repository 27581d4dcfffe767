"""Sets the arms side by side: estimates over seeds, paired differences, slices."""

from collections.abc import Mapping, Sequence

import numpy as np

from trec_semid.metrics import verdicts
from trec_semid.metrics.intervals import Difference, Replicates, difference, interval
from trec_semid.report.arms import ArmRuns
from trec_semid.report.content import (
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
from trec_semid.report.definitions import MIN_USERS, STRATA, limits, metric
from trec_semid.report.measure import Key, Measured, RunMeasures

Pair = tuple[Key, str]
"""A number, and the arm that it is of."""
NOTHING = Estimate(value=None, sd=None, low=None, high=None, by_seed=[])


def compare_with_baseline(arms: Sequence[ArmRuns], measured: Measured) -> list[Comparison]:
    """Return the paired difference of every other arm from the first, which is the baseline.

    Verdicts are corrected for all comparisons of a metric that are shown together: those on the whole test
    part, and those in the slices of one dimension.
    """
    asked = measured.asked
    keys = [Key(protocol, None, name) for protocol in asked.protocols for name in asked.compared]
    keys += [
        Key(asked.protocols[0], stratum, name)
        for stratum in STRATA
        for name in asked.sliced
        if name in asked.compared
    ]
    found: dict[Pair, Difference] = {}
    for key in keys:
        base = _replicates(measured.arms[0], key)
        if not base or not _has_enough_users(measured.arms[0], key):
            continue
        for arm, runs in zip(arms[1:], measured.arms[1:], strict=True):
            found[key, arm.arm.name] = difference(_replicates(runs, key), base)
    told, baseline = _judge_shown(found), arms[0].arm.name
    return [_comparison(pair, baseline, each, told[pair]) for pair, each in found.items()]


def compare_scores(
    arms: Sequence[ArmRuns], measured: Measured, comparisons: Sequence[Comparison]
) -> list[Scores]:
    """Return every metric of every arm, protocol by protocol.

    Args:
        arms: the arms.
        measured: their numbers.
        comparisons: with the baseline; no arm is marked as best against their verdicts.
    """
    keys = [
        Key(protocol, None, name) for protocol in measured.asked.protocols for name in measured.asked.metrics
    ]
    best = _best_arms(arms, measured, keys, comparisons)
    return [
        Scores(
            protocol=protocol,
            metrics={
                key.metric: _estimates(arms, measured, key, best.get(key))
                for key in keys
                if key.protocol == protocol
            },
        )
        for protocol in measured.asked.protocols
    ]


def compare_strata(
    arms: Sequence[ArmRuns], measured: Measured, comparisons: Sequence[Comparison]
) -> list[Stratum]:
    """Return the sliced metrics of every arm in every slice that is not empty; see `compare_scores`."""
    asked, counts = measured.asked, measured.arms[0][0].counts
    keys = [
        Key(asked.protocols[0], stratum, name)
        for stratum, (dimension, _) in STRATA.items()
        for name in asked.sliced
        if counts[f"{asked.per_slice}/{stratum}"] and (metric(name).is_by_user or dimension == "popularity")
    ]
    best = _best_arms(arms, measured, keys, comparisons)
    return [
        Stratum(
            dimension=dimension,
            key=stratum,
            title=title,
            counts=read_counts(counts, f"/{stratum}"),
            metrics={
                key.metric: _estimates(arms, measured, key, best.get(key))
                for key in keys
                if key.stratum == stratum
            },
        )
        for stratum, (dimension, title) in STRATA.items()
        if counts[f"{asked.per_slice}/{stratum}"]
    ]


def read_counts(counts: Mapping[str, int], suffix: str = "") -> Counts:
    """Return the sizes of the test part, or of a slice, whose names end so."""
    kind = TargetCounts if "targets" in counts else RowCounts
    return kind(**{name: counts[f"{name}{suffix}"] for name in kind.model_fields})


def _judge_shown(found: Mapping[Pair, Difference]) -> dict[Pair, verdicts.Verdict]:
    """Return the verdict on every difference, corrected for those that are shown with it."""
    families: dict[tuple[str, str, str | None], dict[Pair, Difference]] = {}
    for (key, arm), each in found.items():
        dimension = STRATA[key.stratum][0] if key.stratum else None
        families.setdefault((key.protocol, key.metric, dimension), {})[key, arm] = each
    judged: dict[Pair, verdicts.Verdict] = {}
    for family in families.values():
        judged |= verdicts.judge(family)
    return judged


def _comparison(pair: Pair, baseline: str, found: Difference, told: verdicts.Verdict) -> Comparison:
    key, arm = pair
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
        p_holm=told.p_holm,
        smallest_detectable=found.smallest_detectable,
        verdict=_worded(told.direction, higher_is_better=metric(key.metric).better == "high"),
    )


def _worded(direction: verdicts.Direction, *, higher_is_better: bool) -> Verdict:
    if direction == NOT_DISTINGUISHABLE:
        return NOT_DISTINGUISHABLE
    return "better" if (direction == "higher") == higher_is_better else "worse"


def _replicates(runs: Sequence[RunMeasures], key: Key) -> list[Replicates]:
    """Return a number's draws by seed; empty where it is not defined, which the rows alone decide."""
    return [run.test[key] for run in runs if key in run.test]


def _has_enough_users(runs: Sequence[RunMeasures], key: Key) -> bool:
    kind = "gauc_users" if key.metric.startswith("gauc") else "users"
    name = f"{kind}/{key.stratum}" if key.stratum else kind
    return runs[0].counts[name] >= MIN_USERS


def _estimates(
    arms: Sequence[ArmRuns], measured: Measured, key: Key, best: str | None
) -> dict[str, Estimate]:
    draws = [_replicates(runs, key) for runs in measured.arms]
    is_enough = _has_enough_users(measured.arms[0], key)
    estimates: dict[str, Estimate] = {}
    for index, (arm, runs) in enumerate(zip(arms, measured.arms, strict=True)):
        values = [each.value for each in draws[index]] or _undrawn(runs, key)
        ends = _ends(draws[index], key.metric) if is_enough and draws[index] else None
        valid = [run.valid[key] for run in runs if key in run.valid]
        found = _estimate(values, ends, valid) if values else NOTHING
        estimates[arm.arm.name] = found.model_copy(update={"is_best": arm.arm.name == best})
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


def _best_arms(
    arms: Sequence[ArmRuns], measured: Measured, keys: Sequence[Key], comparisons: Sequence[Comparison]
) -> dict[Key, str]:
    """Return the arm that is distinguishably better than every other, of the numbers that have one.

    Its comparisons are corrected for those that are shown together, and none of them may contradict the
    verdicts on the comparisons with the baseline.
    """
    names = [arm.arm.name for arm in arms]
    found: dict[Pair, Difference] = {}
    candidates: dict[Key, str] = {}
    for key in keys:
        draws = [_replicates(runs, key) for runs in measured.arms]
        if len(draws) < 2 or not all(draws) or not _has_enough_users(measured.arms[0], key):
            continue
        costs = [[_cost(each, key.metric) for each in seeds] for seeds in draws]
        best = int(np.argmin([np.mean([each.value for each in seeds]) for seeds in costs]))
        candidates[key] = names[best]
        found |= {
            (key, names[other]): difference(costs[best], costs[other])
            for other in range(len(names))
            if other != best
        }
    beaten = {pair for pair, verdict in _judge_shown(found).items() if verdict.direction == "lower"}
    told: dict[Key, dict[str, Verdict]] = {}
    for each in comparisons:
        told.setdefault(Key(each.protocol, each.stratum, each.metric), {})[each.arm] = each.verdict
    return {
        key: best
        for key, best in candidates.items()
        if all((key, other) in beaten for other in names if other != best)
        and _is_confirmed(best, names[0], told.get(key, {}))
    }


def _is_confirmed(best: str, baseline: str, told: Mapping[str, Verdict]) -> bool:
    """Tell whether the verdicts by arm, none where there were no comparisons, let an arm be the best."""
    if not told:
        return True
    return all(each == "worse" for each in told.values()) if best == baseline else told[best] == "better"


def _cost(each: Replicates, name: str) -> Replicates:
    """Return a metric as a cost: smaller is better, and calibration is its distance from 1."""
    better = metric(name).better
    if better == "low":
        return each
    if better == "high":
        return each._replace(value=-each.value, draws=-each.draws)
    return each._replace(value=abs(each.value - 1), draws=np.abs(each.draws - 1))
