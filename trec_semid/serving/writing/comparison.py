"""How far a bundle's answers are from those of the run that it was made of.

Legend: R rows, B users, T targets, N length of the lists.
"""

from collections.abc import Sequence

import numpy as np

from trec_semid.checkpoints.manifest import TableType
from trec_semid.checkpoints.measured import Checked
from trec_semid.core.arrays import Array, Floats, Ints
from trec_semid.core.errors import CheckpointError
from trec_semid.metrics.auc import auc
from trec_semid.metrics.gauc import gauc
from trec_semid.metrics.retrieval import per_user_retrieval

_OF_SCORES: dict[TableType, float] = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.05, "int4": 1.0}
"""Largest difference of a probability to the run's own prediction; of four bits the metrics tell."""
_OF_LISTS = 1e-4
"""The same of scores of items, of tables in full; of others the metrics tell."""


def expect_scores(out: str, tables: TableType, checked: Checked) -> None:
    """Refuse a ranker's bundle that scores otherwise than the run.

    Raises:
        CheckpointError: says by how much.
    """
    if not checked.largest_difference <= _OF_SCORES[tables]:
        raise CheckpointError(
            f"{out}: the bundle scores {checked.largest_difference:.4f} away from the run's predictions "
            f"(allowed: {_OF_SCORES[tables]}). Nothing was written. Export as fp32, or rank again."
        )


def expect_lists(out: str, tables: TableType, checked: Checked) -> None:
    """Refuse a retriever's bundle whose lists have other scores than the run's.

    Raises:
        CheckpointError: says by how much.
    """
    if tables == "fp32" and not checked.largest_difference <= _OF_LISTS:
        raise CheckpointError(
            f"{out}: scores of the bundle's lists are {checked.largest_difference:.4g} from the run's "
            f"(allowed: {_OF_LISTS}). Nothing was written. It is a fault of the export: report it."
        )


def compare_scores(scores: Array, expected: Array, labels: Array, users: Array) -> Checked:
    """Compare (R,) probabilities with the run's, and the metrics that either has.

    Args:
        scores: (R,) of the bundle.
        expected: (R,) of the run.
        labels: (R,) 0 or 1.
        users: (R,) user rows.
    """
    now, before = (_ranking_metrics(each, labels, users) for each in (scores, expected))
    return Checked(
        num=len(scores),
        largest_difference=float(np.abs(scores - expected).max(initial=0.0)),
        metrics=now,
        change={name: value - before[name] for name, value in now.items()},
    )


def compare_lists(
    lists: tuple[Array, Array],
    expected: Array,
    targets: tuple[Ints, Ints],
    positions: Ints,
    cutoffs: Sequence[int],
) -> Checked:
    """Compare lists with those of the run.

    Scores are compared place by place: two lists of the same scores are the same but for what ties.

    Args:
        lists: the bundle's (B, N) items and scores; -1 and -inf after the last.
        expected: (B, N) scores of the lists that the run's model makes.
        targets: (T,) item rows, and how many of them each user has (B,).
        positions: (T,) of these in the run's own lists.
        cutoffs: of recall and NDCG, at most N.
    """
    items, scores = lists
    items_of, num_targets = targets
    owners = np.repeat(np.arange(len(num_targets)), num_targets)
    hits = items[owners] == items_of[:, None]
    # Beyond the list is beyond every cutoff, wherever the run has it.
    here = np.where(hits.any(1), 1 + hits.argmax(1), np.iinfo(np.int64).max)
    now, before = (_means(per_user_retrieval(each, num_targets, cutoffs)) for each in (here, positions))
    return Checked(
        num=len(num_targets),
        largest_difference=_largest_difference(scores, expected),
        metrics=now,
        change={name: value - before[name] for name, value in now.items()},
    )


def _largest_difference(scores: Array, expected: Array) -> float:
    """Return the largest difference, relative to the score where that is above 1; all of a place too few."""
    if not ((scores > -np.inf) == (expected > -np.inf)).all():
        return float(np.finfo(np.float32).max)
    is_there = scores > -np.inf
    difference = np.abs(scores[is_there] - expected[is_there])
    return float((difference / np.maximum(np.abs(expected[is_there]), 1.0)).max(initial=0.0))


def _means(values: dict[str, Floats]) -> dict[str, float]:
    return {name: float(np.nanmean(column)) for name, column in values.items() if len(column)}


def _ranking_metrics(scores: Array, labels: Array, users: Array) -> dict[str, float]:
    if not len(labels) or labels.min() == labels.max():
        return {}
    has_both = len(np.intersect1d(users[labels > 0.5], users[labels <= 0.5])) > 0
    of_users = {"gauc": gauc(scores, labels, users).gauc} if has_both else {}
    return {"auc": auc(scores, labels), **of_users}
