"""Brings a study's finished runs before the engine of comparison: every step is an arm."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from trec_semid.core.errors import SemidError
from trec_semid.data.schema import Split
from trec_semid.evaluation.comparison import ArmResults, Comparison, Seed, compare_with_baseline
from trec_semid.evaluation.evaluated import kind_of_run
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
OF_CODES = ("all/", "unfitted/")
"""What names of metrics of codes begin with: they are of items, not of a split."""


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
    """Take the metrics of every ranker and retriever under draws of users; unreadable ones have none."""
    reader, drawn = RunReader(), {}
    scored = [run for run in runs if _has_predictions(run)]
    kinds = [kind_of_run(run["folders"][0], run["verb"]) for run in scored]
    for kind in ("rank", "retrieve"):
        of_kind = [run for run, own in zip(scored, kinds, strict=True) if own == kind]
        num_compared = len({run["step"] for run in of_kind} - {baseline})
        # The same rule as in a report on these runs, so that both draw the same users.
        choose = partial(choose_draws, num_draws, num_runs=len(of_kind), num_compared=num_compared)
        draw = _draw_ranker if kind == "rank" else _draw_retriever
        for run in track(of_kind, "draw users", len(of_kind)):
            try:
                draws: dict[Split, Draws] = {
                    split: Draws(choose(sum(count_rows(folder, split) for folder in run["folders"])))
                    for split in SPLITS
                    if all(has_predictions(folder, split) for folder in run["folders"])
                }
                drawn[run["step"], run["seed"]] = draw(run, metrics, draws, reader)
            except SemidError as error:
                _log.warning("%s: compared over seeds only: %s", run["label"], error)
    return drawn


def _draw_retriever(
    run: Run, names: Sequence[str], draws: Mapping[Split, Draws], reader: RunReader
) -> dict[str, Replicates]:
    return reader.draw_retriever(run["folders"][0], _said(run, names), draws)


def _draw_ranker(
    run: Run, names: Sequence[str], draws: Mapping[Split, Draws], reader: RunReader
) -> dict[str, Replicates]:
    # Folds share validation rows: only their test rows are drawn from.
    splits = SPLITS if len(run["folders"]) == 1 else ("test",)
    asked = ranker_metrics(_said(run, names))
    metrics = [metric for metric in asked if metric.split in splits and metric.split in draws]
    return reader.draw_rankers(run["folders"], metrics, draws)


def _said(run: Run, names: Sequence[str]) -> list[str]:
    """Return what is drawn of a run: of an evaluation what it was asked for, such as other lengths."""
    return [name for name in names if run["verb"] != "evaluate" or name in run["metrics"]]


def _has_predictions(run: Run) -> bool:
    folders = run["folders"]
    return any(folders and all(has_predictions(folder, split) for folder in folders) for split in SPLITS)


def with_tokenizers(
    runs: Sequence[Run], needs: Mapping[tuple[str, Seed], Sequence[str]]
) -> list[dict[str, Any]]:
    """Give every ranker and retriever the metrics of the codes that it read: its arm has both.

    These are those of the tokenize run that a rank or retrieve run named; an evaluation of one run has
    that run's.

    Args:
        runs: `step`, `seed`, `verb`, `label` and `metrics` of finished runs, each after those that it read.
        needs: labels of the runs that each one read.
    """
    widened: dict[str, dict[str, Any]] = {}
    for run in runs:
        read = [widened[label] for label in needs.get((run["step"], run["seed"]), ()) if label in widened]
        inherited: dict[str, float] = {}
        if run["verb"] in ("rank", "retrieve"):
            codes = [each["metrics"] for each in read if each["verb"] == "tokenize"]
            inherited = {key: value for metrics in codes for key, value in metrics.items()}
        elif run["verb"] == "evaluate":
            asked = [each["metrics"] for each in read if each["verb"] in ("rank", "retrieve")]
            of_one = asked[0] if len(asked) == 1 else {}  # several may have read several codes
            inherited = {key: value for key, value in of_one.items() if key.startswith(OF_CODES)}
        widened[run["label"]] = {**run, "metrics": {**inherited, **run["metrics"]}}
    return list(widened.values())
