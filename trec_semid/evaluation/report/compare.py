"""Sets the arms side by side: estimates over seeds, paired differences, slices."""

from collections.abc import Sequence

import numpy as np

from trec_semid.evaluation.ranking import RANK_METRICS
from trec_semid.evaluation.report.arms import ArmRuns
from trec_semid.evaluation.report.content import (
    NOT_DISTINGUISHABLE,
    Comparison,
    Estimate,
    Scores,
    Stratum,
    Verdict,
)
from trec_semid.evaluation.report.definitions import (
    COMPARED,
    MIN_USERS,
    PROTOCOLS,
    SLICED,
    STRATA,
    limits,
    metric,
)
from trec_semid.evaluation.report.measure import ArmMeasures, Key
from trec_semid.metrics.intervals import Difference, Replicates, difference, interval

NOTHING = Estimate(value=None, sd=None, low=None, high=None, by_seed=[])


def compare_scores(arms: Sequence[ArmRuns], measures: Sequence[ArmMeasures]) -> list[Scores]:
    """Return every metric of every arm, protocol by protocol."""
    return [
        Scores(
            protocol=protocol,
            metrics={name: _estimates(arms, measures, Key(protocol, None, name)) for name in RANK_METRICS},
        )
        for protocol in PROTOCOLS
    ]


def compare_strata(arms: Sequence[ArmRuns], measures: Sequence[ArmMeasures]) -> list[Stratum]:
    """Return AUC and GAUC of every arm in every slice that has rows."""
    counts = measures[0].runs[0].counts
    return [
        Stratum(
            dimension=dimension,
            key=key,
            title=title,
            rows=counts[f"rows/{key}"],
            positives=counts[f"positives/{key}"],
            users=counts[f"users/{key}"],
            gauc_users=counts[f"gauc_users/{key}"],
            metrics={name: _estimates(arms, measures, Key("online", key, name)) for name in SLICED},
        )
        for key, (dimension, title) in STRATA.items()
        if counts[f"rows/{key}"]
    ]


def compare_with_baseline(arms: Sequence[ArmRuns], measures: Sequence[ArmMeasures]) -> list[Comparison]:
    """Return the paired difference of every other arm from the first, which is the baseline."""
    keys = [Key(protocol, None, name) for protocol in PROTOCOLS for name in COMPARED]
    keys += [Key("online", stratum, name) for stratum in STRATA for name in SLICED]
    found: list[Comparison] = []
    for key in keys:
        base = _replicates(measures[0], key)
        if not base or not _has_enough_users(measures[0], key):
            continue
        for arm, measured in zip(arms[1:], measures[1:], strict=True):
            paired = difference(_replicates(measured, key), base)
            found.append(_comparison(key, arm.arm.name, arms[0].arm.name, paired))
    return found


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


def _replicates(measured: ArmMeasures, key: Key) -> list[Replicates]:
    """Return a number's draws by seed; empty where it is not defined, which the labels alone decide."""
    return [run.test[key] for run in measured.runs if key in run.test]


def _has_enough_users(measured: ArmMeasures, key: Key) -> bool:
    kind = "gauc_users" if key.metric.startswith("gauc") else "users"
    name = f"{kind}/{key.stratum}" if key.stratum else kind
    return measured.runs[0].counts[name] >= MIN_USERS


def _estimates(arms: Sequence[ArmRuns], measures: Sequence[ArmMeasures], key: Key) -> dict[str, Estimate]:
    draws = [_replicates(measured, key) for measured in measures]
    is_enough = _has_enough_users(measures[0], key)
    best = _best(draws, key.metric) if is_enough else None
    estimates: dict[str, Estimate] = {}
    for index, (arm, measured) in enumerate(zip(arms, measures, strict=True)):
        valid = [run.valid[key] for run in measured.runs if key in run.valid]
        found = _estimate(draws[index], valid, key.metric, with_interval=is_enough)
        estimates[arm.arm.name] = found.model_copy(update={"is_best": index == best})
    return estimates


def _estimate(
    seeds: Sequence[Replicates], valid: Sequence[float], name: str, *, with_interval: bool
) -> Estimate:
    if not seeds:
        return NOTHING
    values = [each.value for each in seeds]
    ends: tuple[float, float] | None = None
    if with_interval:
        found, (least, most) = interval(seeds), limits(name)
        # What seeds add to a draw is symmetric and may lie beyond what the metric can be.
        ends = max(found.low, least), min(found.high, most)
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
