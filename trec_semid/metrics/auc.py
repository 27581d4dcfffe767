"""Area under the ROC curve: the probability that a positive is scored above a negative."""

from collections.abc import Iterable
from typing import NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike

from trec_semid.core.arrays import Flags, Floats
from trec_semid.core.errors import DataError
from trec_semid.metrics.exchange import MAX_ROWS_IN_MEMORY, SortedRuns, count_pairs_over_ranks
from trec_semid.metrics.keys import check_float32, check_labels, check_scores, pack, sort_keys
from trec_semid.metrics.pairs import PairCounts, count_pairs
from trec_semid.runtime.ranks import gather_objects


class RocCurve(NamedTuple):
    """Points of a ROC curve, from (0, 0) to (1, 1)."""

    false_positive_share: Floats
    true_positive_share: Floats


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve, exactly.

    AUC = P(score+ > score-) + P(score+ = score-) / 2 over all (positive, negative) pairs of rows.
    Source: Hanley and McNeil, "The meaning and use of the area under a ROC curve", 1982.

    Args:
        scores: (N,) any monotone scale, compared in its own precision.
        labels: (N,) 0 or 1.

    Returns:
        A number in [0, 1].

    Raises:
        ShapeError: the lengths differ.
        DataError: a score is NaN, a label is neither 0 nor 1, or one class is absent.
    """
    checked = check_scores(scores)
    truth = check_labels(labels, len(checked))
    _expect_both_classes(truth)
    keys = pack(checked, truth)
    sort_keys(keys)
    return float(count_pairs(keys).auc[0])


def roc_curve(scores: ArrayLike, labels: ArrayLike, *, num_points: int = 256) -> RocCurve:
    """Return the ROC curve at about `num_points` of its corners, evenly spread over the rows.

    Raises:
        ShapeError: the lengths differ.
        DataError: as `auc`.
    """
    checked = check_scores(scores)
    truth = check_labels(labels, len(checked))
    _expect_both_classes(truth)
    order = np.argsort(-checked)
    ends = np.append(np.flatnonzero(np.diff(checked[order])), len(order) - 1)  # last row of each tie
    corners = np.unique(np.linspace(0, len(ends) - 1, num_points).round().astype(np.int64))
    true = np.cumsum(truth[order])[ends[corners]]
    false = ends[corners] + 1 - true
    shares = (np.concatenate(([0.0], hits / hits[-1])) for hits in (false, true))
    return RocCurve(*shares)


@final
class AucAccumulator:
    """AUC over all rows that any rank has given, exact, in bounded memory; see `metrics.exchange`.

    Scores are float32, so that rows of different updates and ranks can be compared as packed.
    """

    def __init__(self, *, max_rows: int = MAX_ROWS_IN_MEMORY) -> None:
        self.rows = SortedRuns(max_rows)

    def update(self, scores: ArrayLike, labels: ArrayLike) -> None:
        """Take (N,) float32 scores and (N,) labels of this rank.

        Raises:
            ShapeError: the lengths differ.
            DataError: scores that are not float32 or NaN, or labels that are neither 0 nor 1.
        """
        checked = check_float32(scores)
        self.rows.append(pack(checked, check_labels(labels, len(checked))))

    def result(self) -> float:
        """Return the AUC over all ranks, the same on each; NaN while a class is absent. All ranks call it."""
        (counts,) = count_pairs_over_ranks(self.rows)
        return self.joined(gather_objects(self.share(counts)))

    @staticmethod
    def share(counts: Iterable[PairCounts]) -> list[float]:
        """Return what this rank knows once `rows` are counted: the area, on one of the ranks."""
        return [float(value) for each in counts for value in each.auc]

    @staticmethod
    def joined(shares: Iterable[list[float]]) -> float:
        """Return the AUC that all ranks' shares make; NaN while a class is absent."""
        return next((value for values in shares for value in values), float("nan"))


def _expect_both_classes(truth: Flags) -> None:
    num_positives = int(np.count_nonzero(truth))
    if num_positives in (0, len(truth)):
        raise DataError(
            f"AUC needs both classes; here are {len(truth)} rows with {num_positives} positives",
            field="label",
            remedy="Evaluate on more rows, or set a label rule that gives two classes",
        )
