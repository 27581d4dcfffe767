"""Steps of a study whose test rows are taken together, such as the folds of an item holdout.

Steps with one `pool` make one row of the table: their predictions of test rows are laid end to end before a
metric is taken. Rows of one user then carry scores of several models, which are compared as they are:
probabilities, each from its own fold's training.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from trec_semid.core.errors import DataError, SemidError
from trec_semid.data.schema import open_dataset
from trec_semid.evaluation.evaluated import dataset_of
from trec_semid.evaluation.resampling import Draws, RankerMetric, RunReader, ranker_metrics


def pool_runs(
    runs: Sequence[Mapping[str, Any]], pools: Mapping[str, str], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """Make one run of those that share pool and seed; all others stay as they are.

    Args:
        runs: `step`, `seed`, `verb`, `folders`, `metrics` and `error` of every run.
        pools: step to pool, of the steps that have one.
        metrics: columns of the table; those of test rows are taken over all rows. Any other is the mean
            over the runs: folds share their validation rows, and would count them several times.

    Returns:
        The runs, a pool in place of its first one; its `error` is the first of its runs'.
    """
    reader = RunReader()
    tested = [metric for metric in ranker_metrics(metrics) if metric.split == "test"]
    gathered: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for run in runs:
        gathered.setdefault((pools.get(run["step"], run["step"]), run["seed"]), []).append(run)
    return [
        dict(parts[0]) if parts[0]["step"] not in pools else _pooled(name, parts, reader, tested)
        for (name, _), parts in gathered.items()
    ]


def _pooled(
    name: str, parts: Sequence[Mapping[str, Any]], reader: RunReader, tested: Sequence[RankerMetric]
) -> dict[str, Any]:
    folders = [folder for part in parts for folder in part["folders"]]
    error, metrics = next((part["error"] for part in parts if part["error"]), None), {}
    if error is None:
        common = set.intersection(*(set(part["metrics"]) for part in parts))
        metrics = {key: fmean(part["metrics"][key] for part in parts) for key in sorted(common)}
        try:
            _expect_same_users(folders)
            # Of these draws only the value over all rows is taken.
            drawn = reader.draw_rankers(folders, tested, {"test": Draws(1)})
            metrics |= {key: each.value for key, each in drawn.items()}
        except SemidError as caught:
            error, metrics = str(caught), {}
    seed = parts[0]["seed"]
    label = name if seed is None else f"{name}-seed-{seed}"
    return {**parts[0], "step": name, "label": label, "folders": folders, "metrics": metrics, "error": error}


def _expect_same_users(folders: Sequence[str]) -> None:
    """Rows of users mean the same in all folders only where their datasets list the same users."""
    datasets = list(dict.fromkeys(dataset_of(folder) for folder in folders))
    first, *others = [(uri, open_dataset(uri)) for uri in datasets]
    for uri, dataset in others:
        if dataset.users(["user_id"]) != first[1].users(["user_id"]):
            remedy = "Pool only runs on parts of one dataset, such as the folds of an item holdout"
            raise DataError(f"its users are not those of {first[0]}", file=uri, field="pool", remedy=remedy)
