"""Brings a study's finished runs before the engine of comparison: every step is an arm."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from trec_semid.core.errors import SemidError
from trec_semid.data.schema import Split
from trec_semid.evaluation.comparison import ArmResults, Comparison, Seed, compare_with_baseline
from trec_semid.evaluation.predictions import count_rows
from trec_semid.evaluation.resampling import (
    Draws,
    RunReader,
    choose_draws,
    has_predictions,
    ranker_metrics,
)
from trec_semid.metrics.bootstrap import Replicates
from trec_semid.runtime.logs import track

_log = logging.getLogger(__name__)
Run = Mapping[str, Any]
"""`step`, `seed`, `verb`, `label`, `folders` and `metrics` of a finished run; a pool has several folders."""
SPLITS: tuple[Split, Split] = ("valid", "test")


def compare(
    runs: Sequence[Run], metrics: Sequence[str], baseline: str, num_draws: int
) -> dict[str, dict[str, Comparison]]:
    """Return step -> metric -> comparison with the baseline.

    Args:
        runs: every finished run.
        metrics: columns of the table.
        baseline: step that every other is compared with; where no run of it finished nothing is compared.
        num_draws: draws of users that the config asks for.
    """
    drawn = draw_runs(runs, metrics, baseline, num_draws)
    arms: dict[str, ArmResults] = {}
    for step in dict.fromkeys(run["step"] for run in runs):
        own = [run for run in runs if run["step"] == step]
        arms[step] = ArmResults(
            values={run["seed"]: run["metrics"] for run in own},
            draws={run["seed"]: drawn.get((step, run["seed"]), {}) for run in own},
        )
    return compare_with_baseline(arms, baseline, metrics) if baseline in arms else {}


def draw_runs(
    runs: Sequence[Run], metrics: Sequence[str], baseline: str, num_draws: int
) -> dict[tuple[str, Seed], dict[str, Replicates]]:
    """Take the metrics of every rank and retrieve run under draws of users; unreadable ones have none."""
    reader, drawn = RunReader(), {}
    for verb in ("rank", "retrieve"):
        of_verb = [run for run in runs if run["verb"] == verb and _has_predictions(run)]
        num_compared = len({run["step"] for run in of_verb} - {baseline})
        # The same rule as in a report on these runs, so that both draw the same users.
        choose = partial(choose_draws, num_draws, num_runs=len(of_verb), num_compared=num_compared)
        for run in track(of_verb, "draw users", len(of_verb)):
            try:
                draws: dict[Split, Draws] = {
                    split: Draws(choose(sum(count_rows(folder, split) for folder in run["folders"])))
                    for split in SPLITS
                    if all(has_predictions(folder, split) for folder in run["folders"])
                }
                drawn[run["step"], run["seed"]] = _draw(run, metrics, draws, reader)
            except SemidError as error:
                _log.warning("%s: compared over seeds only: %s", run["label"], error)
    return drawn


def _draw(
    run: Run, names: Sequence[str], draws: Mapping[Split, Draws], reader: RunReader
) -> dict[str, Replicates]:
    if run["verb"] == "retrieve":
        return reader.draw_retriever(run["folders"][0], names, draws)
    # Folds share validation rows: only their test rows are drawn from.
    splits = SPLITS if len(run["folders"]) == 1 else ("test",)
    metrics = [metric for metric in ranker_metrics(names) if metric.split in splits and metric.split in draws]
    return reader.draw_rankers(run["folders"], metrics, draws)


def _has_predictions(run: Run) -> bool:
    return any(all(has_predictions(folder, split) for folder in run["folders"]) for split in SPLITS)


def with_tokenizers(
    runs: Sequence[Run], needs: Mapping[tuple[str, Seed], Sequence[str]]
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
