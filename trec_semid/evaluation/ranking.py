"""Every ranking metric, over all rows and per stratum, under the names that `metrics.json` uses."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from trec_semid.core.arrays import Flags, Float32s, Ints
from trec_semid.core.errors import DataError
from trec_semid.evaluation.predictions import Predictions
from trec_semid.evaluation.strata import STRATA, Strata
from trec_semid.metrics.auc import AucAccumulator, auc
from trec_semid.metrics.binary import BinaryAccumulator, BinaryMetrics, binary_metrics
from trec_semid.metrics.exchange import MAX_ROWS_IN_MEMORY, SortedRuns, count_pairs_over_ranks
from trec_semid.metrics.gauc import GaucAccumulator, GroupAuc, gauc
from trec_semid.metrics.pairs import PairCounts
from trec_semid.runtime.ranks import gather_objects

RANK_METRICS = ("auc", "gauc", "gauc_user_mean", "log_loss", "normalised_entropy", "calibration")
"""`<metric>` or `<metric>/<stratum>`; a metric that its rows do not define is left out."""
RANK_COUNTS = ("rows", "positives", "users", "gauc_users")
"""`<count>` or `<count>/<stratum>`; always there, 0 included."""
Named = tuple[dict[str, float], dict[str, int]]
"""Metrics and counts."""


def rank_metrics(
    scores: ArrayLike,
    labels: ArrayLike,
    user_rows: ArrayLike,
    item_rows: ArrayLike | None = None,
    strata: Strata | None = None,
) -> Named:
    """Return metrics and counts of rows that are in memory, overall and per stratum.

    Args:
        scores: (N,) probabilities.
        labels: (N,) 0 or 1.
        user_rows: (N,) whose row it is.
        item_rows: (N,) which item; needed with `strata`.
        strata: where given, every metric also per stratum, as `<metric>/<stratum>`.

    Raises:
        ShapeError: the lengths differ.
        DataError: a score outside [0, 1] or NaN, a label that is neither 0 nor 1, or a user or item
            that the strata do not know.
    """
    score, label, user = np.asarray(scores), np.asarray(labels), np.asarray(user_rows)
    metrics, counts = _measure(score, label, user, "")
    for name, mask in _masks(strata, user, item_rows):
        more_metrics, more_counts = _measure(score[mask], label[mask], user[mask], f"/{name}")
        metrics |= more_metrics
        counts |= more_counts
    return metrics, counts


def split_metrics(split: str, predictions: Predictions, strata: Strata | None = None) -> Named:
    """Return metrics and counts of a split's predictions under both protocols.

    Metrics are named `<split>/...` (history = all events before) and `<split>-frozen/...` (history =
    training events); counts are the same for both and named `<split>/...`.

    Raises:
        DataError: as `rank_metrics`.
    """
    rows = predictions.label, predictions.user_row, predictions.item_row, strata
    online, counts = rank_metrics(predictions.score, *rows)
    frozen, _ = rank_metrics(predictions.score_frozen, *rows)
    metrics = {f"{split}/{name}": value for name, value in online.items()}
    metrics |= {f"{split}-frozen/{name}": value for name, value in frozen.items()}
    return metrics, {f"{split}/{name}": value for name, value in counts.items()}


@final
class RankAccumulator:
    """`rank_metrics` over all rows that any rank has given, exact, in bounded memory.

    Keeps up to `max_rows` rows of each of three groupings (all, popularity, activity), 16 bytes a
    row and grouping; more go to disk.
    """

    def __init__(self, strata: Strata | None = None, *, max_rows: int = MAX_ROWS_IN_MEMORY) -> None:
        self._strata = strata
        self._parts = {"": _Part(max_rows)}
        if strata:
            self._parts |= {f"/{name}": _Part(max(1, max_rows // 4)) for name in STRATA}

    def update(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        user_rows: ArrayLike,
        item_rows: ArrayLike | None = None,
    ) -> None:
        """Take this rank's rows: float32 probabilities, labels, and dense user and item rows.

        Raises:
            ShapeError: the lengths differ.
            DataError: as `rank_metrics`, or scores that are not float32.
        """
        score, label, user = np.asarray(scores), np.asarray(labels), np.asarray(user_rows)
        self._parts[""].update(score, label, user)
        for name, mask in _masks(self._strata, user, item_rows):
            self._parts[f"/{name}"].update(score[mask], label[mask], user[mask])

    def result(self) -> Named:
        """Return metrics and counts over all ranks, the same on each. All ranks call it."""
        metrics: dict[str, float] = {}
        counts: dict[str, int] = {}
        parts = self._parts.values()
        # What ranks tell each other of one part, they tell of all at once: it is messages that take time.
        counted = iter(count_pairs_over_ranks(*(store for part in parts for store in part.stores)))
        told = gather_objects([part.share(next(counted), next(counted)) for part in parts])
        for suffix, *shares in zip(self._parts, *told, strict=True):
            more_metrics, more_counts = _Part.joined(suffix, shares)
            metrics |= more_metrics
            counts |= more_counts
        return metrics, counts


class _Part:
    """The accumulators of one stratum."""

    def __init__(self, max_rows: int) -> None:
        self._binary, self._auc = BinaryAccumulator(), AucAccumulator(max_rows=max_rows)
        self._gauc = GaucAccumulator(max_rows=max_rows)

    def update(self, score: Float32s, label: Float32s, user: Ints) -> None:
        """Take (N,) probabilities, labels and user rows of the stratum, of this rank."""
        self._binary.update(score, label)
        self._auc.update(score, label)
        self._gauc.update(score, label, user)

    @property
    def stores(self) -> tuple[SortedRuns, SortedRuns]:
        """Rows that are to be counted: for the area over all, and within users."""
        return self._auc.rows, self._gauc.rows

    def share(self, of_all: Iterator[PairCounts], of_users: Iterator[PairCounts]) -> "_Share":
        """Return what this rank knows, once its `stores` are counted."""
        return self._binary.share(), AucAccumulator.share(of_all), GaucAccumulator.share(of_users)

    @staticmethod
    def joined(suffix: str, shares: "Sequence[_Share]") -> Named:
        """Return metrics and counts of all ranks' shares, their names ending in `suffix`."""
        binary, area, group = zip(*shares, strict=True)
        return _name(
            suffix,
            BinaryAccumulator.joined(binary),
            AucAccumulator.joined(area),
            GaucAccumulator.joined(group),
        )


_Share = tuple[tuple[Any, ...], list[float], tuple[Any, ...]]
"""Of a stratum: sums over rows, its area, and sums over users."""


def _measure(score: Float32s, label: Float32s, user: Ints, suffix: str) -> Named:
    binary = binary_metrics(score, label)
    area = auc(score, label) if 0 < binary.positives < binary.rows else math.nan
    try:
        group = gauc(score, label, user)
    except DataError:  # scores and labels are checked by now: no user has both classes
        group = GroupAuc(math.nan, math.nan, 0, len(np.unique(user)), 0)
    return _name(suffix, binary, area, group)


def _name(suffix: str, binary: BinaryMetrics, area: float, group: GroupAuc) -> Named:
    probability = binary.log_loss, binary.normalised_entropy, binary.calibration
    values = zip(RANK_METRICS, (area, group.gauc, group.user_mean, *probability), strict=True)
    users = group.num_users + group.num_one_class
    sizes = zip(RANK_COUNTS, (binary.rows, binary.positives, users, group.num_users), strict=True)
    metrics = {name + suffix: float(value) for name, value in values if math.isfinite(value)}
    return metrics, {name + suffix: int(size) for name, size in sizes}


def _masks(strata: Strata | None, user: Ints, item_rows: ArrayLike | None) -> Iterator[tuple[str, Flags]]:
    if strata is None:
        return
    if item_rows is None:
        raise DataError("strata need the item of each row", field="item_row", remedy="Give item_rows")
    yield from strata.masks(user, np.asarray(item_rows))
