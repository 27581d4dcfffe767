"""Sets the steps of a study against its baseline, paired over seeds, and over users of rankers."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from trec_semid.core.errors import DataError, SemidError
from trec_semid.metrics.intervals import Difference, Replicates, bootstrap
from trec_semid.metrics.paired import paired_difference, paired_t_test
from trec_semid.metrics.verdicts import Direction, Verdict, fewest_draws, judge
from trec_semid.report.measure import choose_replicates
from trec_semid.runtime.logs import track
from trec_semid.study.predictions import Key, RowReader, Rows, has_predictions, user_keys
from trec_semid.study.retrieval import draw_retrieved

_log = logging.getLogger(__name__)
Pairing = Literal["seeds and users", "users", "seeds"]


class Compared(NamedTuple):
    """One metric of one step against the baseline's."""

    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    """Adjusted for all steps that are compared in this metric."""
    smallest_detectable: float
    verdict: Direction
    """Of the corrected p."""
    paired_over: Pairing
    seeds: int


Draws = Mapping[tuple[str, int | None], Mapping[str, Replicates]]
"""(step, seed) to metric to its draws of users."""


def compare(
    runs: Sequence[Mapping[str, Any]], metrics: Sequence[str], baseline: str, replicates: int
) -> dict[str, dict[str, Compared]]:
    """Return step -> metric -> comparison, of what both it and the baseline have at common seeds.

    Args:
        runs: `step`, `seed`, `verb`, `label`, `folders` and `metrics` of every finished run.
        metrics: keys to compare.
        baseline: step.
        replicates: draws of users.
    """
    steps = [step for step in dict.fromkeys(run["step"] for run in runs) if step != baseline]
    draws = draw_users(runs, metrics, baseline, replicates)
    values = {(run["step"], run["seed"]): run["metrics"] for run in runs}
    found: dict[str, dict[str, Compared]] = {}
    for key in metrics:
        tests = {
            step: test for step in steps if (test := _test(key, step, baseline, values, draws)) is not None
        }
        verdicts = judge({step: difference for step, (difference, _, _) in tests.items()})
        for step, (difference, over, seeds) in tests.items():
            found.setdefault(step, {})[key] = _compared(difference, over, seeds, verdicts[step])
    return found


def draw_users(
    runs: Sequence[Mapping[str, Any]], metrics: Sequence[str], baseline: str, replicates: int
) -> Draws:
    """Take the metrics of every rank and retrieve run under draws of users; unreadable ones have none."""
    keys, reader = user_keys(metrics), RowReader()
    ranked = [run for run in runs if run["verb"] == "rank" and has_predictions(run["folders"], keys)]
    retrieved = [run for run in runs if run["verb"] == "retrieve"]
    num_compared = len({run["step"] for run in (*ranked, *retrieved)} - {baseline})
    num_replicates = partial(choose_replicates, replicates, num_runs=len(ranked), num_compared=num_compared)
    draws: dict[tuple[str, int | None], dict[str, Replicates]] = {}
    for run in track(ranked, "draw users", len(ranked)):
        try:
            # Folds share validation rows: only their test rows are drawn from.
            own = keys if len(run["folders"]) == 1 else [key for key in keys if key.split == "test"]
            read = reader.read(run["folders"], own)
        except SemidError as error:
            _log.warning("%s: compared over seeds only: %s", run["label"], error)
            continue
        draws[run["step"], run["seed"]] = _draw(read, own, num_replicates)
    drawn = max(replicates, fewest_draws(num_compared))
    for run in track(retrieved, "draw users", len(retrieved)):
        try:
            draws[run["step"], run["seed"]] = draw_retrieved(run["folders"][0], metrics, drawn)
        except SemidError as error:
            _log.warning("%s: compared over seeds only: %s", run["label"], error)
    return draws


def _draw(
    read: Mapping[str, Rows], keys: Sequence[Key], num_replicates: Callable[[int], int]
) -> dict[str, Replicates]:
    found: dict[str, Replicates] = {}
    for key in keys:
        rows = read[key.name]
        drawn = bootstrap(*rows, metrics=[key.metric], num_replicates=num_replicates(len(rows.users)))
        if drawn:
            found[key.name] = drawn[key.metric]
    return found


def _test(
    key: str, step: str, baseline: str, values: Mapping[Any, Mapping[str, float]], draws: Draws
) -> tuple[Difference, Pairing, int] | None:
    seeds = [
        seed
        for name, seed in values
        if name == step and key in values[step, seed] and key in values.get((baseline, seed), {})
    ]
    pairs = [(draws.get((step, seed), {}), draws.get((baseline, seed), {})) for seed in seeds]
    if seeds and all(key in one and key in other for one, other in pairs):
        try:
            found = paired_difference([one[key] for one, _ in pairs], [other[key] for _, other in pairs])
        except DataError as error:  # other users, as where a step reads another dataset
            _log.warning("%s: not compared with %s in %s: %s", step, baseline, key, error)
            return None
        return found, "seeds and users" if len(seeds) > 1 else "users", len(seeds)
    if len(seeds) < 2:
        return None
    columns = ([values[name, seed][key] for seed in seeds] for name in (step, baseline))
    return paired_t_test(*columns), "seeds", len(seeds)


def _compared(found: Difference, over: Pairing, seeds: int, verdict: Verdict) -> Compared:
    return Compared(
        found.value,
        found.low,
        found.high,
        found.p_value,
        verdict.p_holm,
        found.smallest_detectable,
        verdict.direction,
        over,
        seeds,
    )


def with_tokenizers(
    runs: Sequence[Mapping[str, Any]], needs: Mapping[tuple[str, int | None], Sequence[str]]
) -> list[dict[str, Any]]:
    """Give every rank and retrieve run the metrics of the tokenize run whose codes it read: its arm has both.

    Args:
        runs: `step`, `seed`, `verb`, `label` and `metrics` of finished runs.
        needs: labels of the runs that each one read.
    """
    codes = {run["label"]: run["metrics"] for run in runs if run["verb"] == "tokenize"}
    widened: list[dict[str, Any]] = []
    for run in runs:
        reads = run["verb"] in ("rank", "retrieve")
        read = needs.get((run["step"], run["seed"]), ()) if reads else ()
        inherited = {key: value for label in read for key, value in codes.get(label, {}).items()}
        widened.append({**run, "metrics": {**inherited, **run["metrics"]}})
    return widened
