"""Sets arms of runs side by side: the one engine behind a study's table and a report.

An arm is one config, run with one or more seeds. Two arms are compared in a metric

    over seeds and users   where they have two or more seeds in common: paired by seed, and users drawn
    over users             else: users drawn; seeds, where there are more than one, count as independent
    over seeds             where predictions are not at hand to draw users from: a paired t-test

and what is shown together is corrected together (Holm): every arm's difference from the baseline in one
metric of one split and protocol, over all slices of one dimension (popularity, activity). A verdict other
than 'not distinguishable' holds after that correction. Fewer than MIN_USERS users compare nothing.

The formulas are in `metrics.intervals` and `metrics.verdicts`.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from trec_semid.core.errors import DataError
from trec_semid.evaluation.strata import ACTIVITY, POPULARITY
from trec_semid.metrics.bootstrap import Replicates
from trec_semid.metrics.intervals import (
    Difference,
    difference_of_other_seeds,
    difference_of_paired_seeds,
    paired_t_test,
)
from trec_semid.metrics.verdicts import NOT_DISTINGUISHABLE, Direction, Verdict, judge

MIN_USERS = 10
"""A comparison over fewer users says nothing, and is left out."""
Seed = int | None
Pairing = Literal["seeds and users", "users", "seeds"]
Goal = Literal["high", "low", "one"]
"""Which values of a metric are good: high ones, low ones, those near 1."""
Pair = tuple[str, str]
"""An arm and a metric."""
_log = logging.getLogger(__name__)


class ArmResults(NamedTuple):
    """What is known of an arm's finished runs, seed by seed; metrics are named as in `metrics.json`."""

    draws: Mapping[Seed, Mapping[str, Replicates]]
    """Seed to metric to its value under draws of users, of runs whose predictions could be read."""
    values: Mapping[Seed, Mapping[str, float]] = {}
    """Seed to metric to value: what is left where there are no draws."""

    def seeds_with(self, metric: str) -> list[Seed]:
        """Return the seeds whose run has the metric, in ascending order."""
        seeds = [
            seed
            for seed in {**self.draws, **self.values}
            if metric in self.draws.get(seed, {}) or metric in self.values.get(seed, {})
        ]
        return sorted(seeds, key=lambda seed: (seed is not None, seed or 0))

    def drawn(self, metric: str, seeds: Sequence[Seed]) -> list[Replicates] | None:
        """Return the metric's draws at these seeds; None where a run has none."""
        drawn = [self.draws.get(seed, {}).get(metric) for seed in seeds]
        return [each for each in drawn if each is not None] if None not in drawn else None


class Comparison(NamedTuple):
    """One metric of one arm against the baseline's."""

    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    """Corrected for everything that is shown together."""
    smallest_detectable: float
    verdict: Direction
    """Of the corrected p."""
    paired_over: Pairing
    seeds: int
    """How many seeds both arms have."""


class _Test(NamedTuple):
    difference: Difference
    paired_over: Pairing
    seeds: int


def compare_with_baseline(
    arms: Mapping[str, ArmResults], baseline: str, metrics: Sequence[str]
) -> dict[str, dict[str, Comparison]]:
    """Return arm -> metric -> comparison, of what both an arm and the baseline have.

    Args:
        arms: by name, in the order in which they are shown.
        baseline: the arm that every other is compared with.
        metrics: all that is shown together.
    """
    tests: dict[Pair, _Test] = {}
    for metric in metrics:
        for name, arm in arms.items():
            test = _test(arm, arms[baseline], metric, f"{name} and {baseline}") if name != baseline else None
            if test is not None:
                tests[name, metric] = test
    verdicts = _judge_families({pair: test.difference for pair, test in tests.items()})
    compared: dict[str, dict[str, Comparison]] = {}
    for (name, metric), test in tests.items():
        compared.setdefault(name, {})[metric] = _comparison(test, verdicts[name, metric])
    return compared


def best_arms(
    arms: Mapping[str, ArmResults],
    baseline: str,
    goals: Mapping[str, Goal],
    comparisons: Mapping[str, Mapping[str, Comparison]],
) -> dict[str, str]:
    """Return metric -> the arm that is distinguishably better than every other, of metrics that have one.

    Its comparisons are corrected for those that are shown together, and none of them may contradict the
    verdicts on the comparisons with the baseline.

    Args:
        arms: by name.
        baseline: the arm that `comparisons` are with.
        goals: metrics in question, and which values of each are good.
        comparisons: arm -> metric -> comparison, of `compare_with_baseline`.
    """
    differences: dict[Pair, Difference] = {}
    candidates: dict[str, str] = {}
    for metric, goal in goals.items():
        costs = {name: _costs(arm, metric, goal) for name, arm in arms.items()}
        if len(costs) < 2 or not all(has_enough_users(arm.draws, metric) for arm in costs.values()):
            continue
        best = min(costs, key=lambda name: np.mean([run[metric].value for run in costs[name].draws.values()]))
        candidates[metric] = best
        for other, cost in costs.items():
            test = _test(costs[best], cost, metric, f"{best} and {other}") if other != best else None
            if test is not None:
                differences[other, metric] = test.difference
    beaten = {pair for pair, verdict in _judge_families(differences).items() if verdict.direction == "lower"}
    return {
        metric: best
        for metric, best in candidates.items()
        if all((other, metric) in beaten for other in arms if other != best)
        and _is_confirmed(best, baseline, metric, goals[metric], comparisons)
    }


def has_enough_users(draws: Mapping[Seed, Mapping[str, Replicates]], metric: str) -> bool:
    """Return whether every run has the metric under draws of users, of MIN_USERS or more."""
    return bool(draws) and all(
        metric in of_run and of_run[metric].num_users >= MIN_USERS for of_run in draws.values()
    )


def _test(first: ArmResults, second: ArmResults, metric: str, both: str) -> _Test | None:
    own, others = first.seeds_with(metric), second.seeds_with(metric)
    common = [seed for seed in own if seed in others]
    # One seed in common does not tell how much seeds vary: every run of both arms then has its say.
    is_paired = len(common) > 1
    drawn = first.drawn(metric, common if is_paired else own)
    other_drawn = second.drawn(metric, common if is_paired else others)
    if drawn and other_drawn:
        if drawn[0].num_users < MIN_USERS:
            return None
        compare = difference_of_paired_seeds if is_paired else difference_of_other_seeds
        try:
            difference = compare(drawn, other_drawn)
        except DataError as error:  # other users, as where an arm reads another dataset
            _log.warning("%s: not compared in %s: %s", both, metric, error)
            return None
        return _Test(difference, "seeds and users" if is_paired else "users", len(common))
    # No draws, as of a metric that predictions do not give: values by seed alone have to tell.
    columns = [
        [arm.values[seed][metric] for seed in common if metric in arm.values.get(seed, {})]
        for arm in (first, second)
    ]
    if not is_paired or len(columns[0]) != len(common) or len(columns[1]) != len(common):
        return None
    return _Test(paired_t_test(*columns), "seeds", len(common))


def _judge_families(differences: Mapping[Pair, Difference]) -> dict[Pair, Verdict]:
    """Return the verdict on every difference, corrected for those that are shown with it."""
    families: dict[tuple[str, str, str], dict[Pair, Difference]] = {}
    for pair, difference in differences.items():
        families.setdefault(_family(pair[1]), {})[pair] = difference
    verdicts: dict[Pair, Verdict] = {}
    for family in families.values():
        verdicts |= judge(family)
    return verdicts


def _family(metric: str) -> tuple[str, str, str]:
    """Return split with protocol, metric, and the dimension of its slice: what is corrected together."""
    part, _, rest = metric.partition("/")
    name, _, stratum = rest.partition("/")
    dimensions = {"popularity": POPULARITY, "activity": ACTIVITY}
    return part, name, next((each for each, strata in dimensions.items() if stratum in strata), stratum)


def _comparison(test: _Test, verdict: Verdict) -> Comparison:
    difference = test.difference
    return Comparison(
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        p=difference.p_value,
        p_holm=verdict.p_holm,
        smallest_detectable=difference.smallest_detectable,
        verdict=verdict.direction,
        paired_over=test.paired_over,
        seeds=test.seeds,
    )


def _costs(arm: ArmResults, metric: str, goal: Goal) -> ArmResults:
    """Return an arm with one metric as a cost: smaller is better, and what should be 1 is its distance."""
    return ArmResults(
        {seed: {metric: _cost(each[metric], goal)} for seed, each in arm.draws.items() if metric in each}
    )


def _cost(each: Replicates, goal: Goal) -> Replicates:
    if goal == "low":
        return each
    if goal == "high":
        return each._replace(value=-each.value, draws=-each.draws)
    # A metric that should be 1, as calibration: too much and too little cost alike.
    return each._replace(value=abs(each.value - 1), draws=np.abs(each.draws - 1))


def _is_confirmed(
    best: str,
    baseline: str,
    metric: str,
    goal: Goal,
    comparisons: Mapping[str, Mapping[str, Comparison]],
) -> bool:
    """Tell whether the verdicts on a metric, where there are any, let an arm be the best."""
    verdicts = {name: own[metric].verdict for name, own in comparisons.items() if metric in own}
    better: Direction = "higher" if goal == "high" else "lower"
    if not verdicts:
        return True
    # The baseline has no verdict of its own: it is best where that of every other arm says worse.
    if best == baseline:
        return all(each not in (better, NOT_DISTINGUISHABLE) for each in verdicts.values())
    return verdicts.get(best) == better
