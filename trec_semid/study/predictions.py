"""Evaluation rows of a study's rankers, and steps whose rows are taken together.

Steps with one `pool`, such as the folds of an item holdout, make one row of the table: their predictions of
test rows are laid end to end before a metric is taken. Rows of one user then carry scores of several models,
which are compared as they are: probabilities, each from its own fold's training.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from trec_semid.core.arrays import Array
from trec_semid.core.errors import DataError, SemidError
from trec_semid.core.paths import exists
from trec_semid.data.schema import Split, open_dataset
from trec_semid.evaluation.predictions import Predictions, predictions_uri, read_predictions
from trec_semid.evaluation.strata import Strata, training_strata
from trec_semid.metrics.intervals import USER_METRICS, bootstrap
from trec_semid.report.collect import read_run

_KEY = re.compile(
    rf"(?P<split>valid|test)(?P<frozen>-frozen)?/(?P<metric>{'|'.join(USER_METRICS)})(/(?P<stratum>\w+))?"
)


class Key(NamedTuple):
    """A metric of rankers that rows of users define, such as `test-frozen/gauc/popularity_tail`."""

    name: str
    split: Split
    is_frozen: bool
    metric: str
    stratum: str | None


class Rows(NamedTuple):
    """(n,) scores, labels and user rows."""

    scores: Array
    labels: Array
    users: Array


def user_keys(metrics: Iterable[str]) -> list[Key]:
    """Return those of the metrics that predictions give."""
    found = [match for key in metrics if (match := _KEY.fullmatch(key))]
    return [
        Key(m[0], "valid" if m["split"] == "valid" else "test", bool(m["frozen"]), m["metric"], m["stratum"])
        for m in found
    ]


def has_predictions(folders: Sequence[str], keys: Iterable[Key]) -> bool:
    """Return whether every run wrote predictions of a split that one of the keys asks for."""
    splits: set[Split] = {key.split for key in keys}
    return any(all(exists(predictions_uri(folder, split, 0)) for folder in folders) for split in splits)


class RowReader:
    """Reads predictions of runs; strata of a dataset are counted once."""

    def __init__(self) -> None:
        self._strata: dict[str, Strata] = {}

    def read(self, folders: Sequence[str], keys: Sequence[Key]) -> dict[str, Rows]:
        """Return the rows of each key, of all folders end to end.

        Raises:
            DataError: predictions are absent or damaged, or the folders' datasets have other users.
        """
        if len(folders) > 1:
            _expect_same_users(folders)
        found: dict[str, Rows] = {}
        splits: set[Split] = {key.split for key in keys}
        for split in sorted(splits):
            read = {folder: read_predictions(folder, split) for folder in folders}
            for key in (key for key in keys if key.split == split):
                parts = [self._select(folder, key, predicted) for folder, predicted in read.items()]
                found[key.name] = Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        return found

    def _select(self, folder: str, key: Key, predicted: Predictions) -> Rows:
        scores = predicted.score_frozen if key.is_frozen else predicted.score
        rows = Rows(scores, predicted.label, predicted.user_row)
        if key.stratum is None:
            return rows
        dataset = str(read_run(folder).config["dataset"])
        if dataset not in self._strata:
            self._strata[dataset] = training_strata(open_dataset(dataset))
        masks = dict(self._strata[dataset].masks(predicted.user_row, predicted.item_row))
        mask = masks.get(key.stratum, np.zeros(len(predicted.row), bool))
        return Rows(*(column[mask] for column in rows))


def pool_runs(
    runs: Sequence[Mapping[str, Any]], pools: Mapping[str, str], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """Make one run of those that share pool and seed; all others stay as they are.

    Args:
        runs: `step`, `seed`, `verb`, `folders`, `metrics` and `error` of every run.
        pools: step to pool, of the steps that have one.
        metrics: wanted; those of test rows are taken over all rows. Any other is the mean over the runs:
            folds share their validation rows, and would count them several times.

    Returns:
        The runs, a pool in place of its first one; its `error` is the first of its runs'.
    """
    reader, keys = RowReader(), user_keys(metrics)
    gathered: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for run in runs:
        gathered.setdefault((pools.get(run["step"], run["step"]), run["seed"]), []).append(run)
    return [
        dict(parts[0]) if parts[0]["step"] not in pools else _pooled(name, parts, reader, keys)
        for (name, _), parts in gathered.items()
    ]


def _pooled(
    name: str, parts: Sequence[Mapping[str, Any]], reader: RowReader, keys: Sequence[Key]
) -> dict[str, Any]:
    folders = [folder for part in parts for folder in part["folders"]]
    error, metrics = next((part["error"] for part in parts if part["error"]), None), {}
    if error is None:
        common = set.intersection(*(set(part["metrics"]) for part in parts))
        metrics = {key: fmean(part["metrics"][key] for part in parts) for key in sorted(common)}
        tested = [key for key in keys if key.split == "test"]
        try:
            metrics |= _of_all_rows(reader.read(folders, tested), tested)
        except SemidError as caught:
            error, metrics = str(caught), {}
    seed = parts[0]["seed"]
    label = name if seed is None else f"{name}-seed-{seed}"
    return {**parts[0], "step": name, "label": label, "folders": folders, "metrics": metrics, "error": error}


def _of_all_rows(read: Mapping[str, Rows], keys: Sequence[Key]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key in keys:
        drawn = bootstrap(*read[key.name], metrics=[key.metric], num_replicates=1)
        if drawn:
            found[key.name] = drawn[key.metric].value
    return found


def _expect_same_users(folders: Sequence[str]) -> None:
    """Rows of users mean the same in all folders only where their datasets list the same users."""
    datasets = list(dict.fromkeys(str(read_run(folder).config["dataset"]) for folder in folders))
    first, *others = [(uri, open_dataset(uri)) for uri in datasets]
    for uri, dataset in others:
        if dataset.users(["user_id"]) != first[1].users(["user_id"]):
            remedy = "Pool only runs on parts of one dataset, such as the folds of an item holdout"
            raise DataError(f"its users are not those of {first[0]}", file=uri, field="pool", remedy=remedy)
