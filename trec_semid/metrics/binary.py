"""How good predicted probabilities are as probabilities: log loss, normalised entropy, calibration."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike

from trec_semid.core.arrays import Array, Flags, Floats, Ints
from trec_semid.core.errors import DataError
from trec_semid.metrics.keys import check_labels, check_scores
from trec_semid.runtime.ranks import gather_objects

CLIP = 2.0**-23
"""Probabilities are moved into [CLIP, 1 - CLIP] before their logarithm: the spacing of float32 at 1."""


class BinaryMetrics(NamedTuple):
    """Metrics of predicted probabilities over some rows; NaN where one is not defined."""

    rows: int
    positives: int
    log_loss: float
    normalised_entropy: float
    calibration: float


class Reliability(NamedTuple):
    """Rows in bins of equal size by score: what was predicted and what came."""

    rows: Ints
    mean_score: Floats
    positive_share: Floats


class ProbabilitySums(NamedTuple):
    """Sums over rows, or per user, that every metric of this module is a ratio of."""

    rows: Any
    positives: Any
    loss: Any
    predicted: Any

    def log_loss(self) -> Any:
        """Mean of -ln p(label) [nats]; NaN without rows."""
        return _ratio(self.loss, self.rows)

    def normalised_entropy(self) -> Any:
        """Log loss over the entropy of the share of positives; NaN with one class."""
        share = _ratio(self.positives, self.rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            # 0 · ln 0 is NaN here, and meant to be: with one class the entropy is 0, and nothing can be
            # divided by it.
            entropy = -(share * np.log(share) + (1 - share) * np.log1p(-share))
        return _ratio(self.log_loss(), entropy)

    def calibration(self) -> Any:
        """Predicted positives over positives; NaN without positives."""
        return _ratio(self.predicted, self.positives)


def log_loss(scores: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log likelihood of the labels [nats].

    LL = -(1/n) Σ y ln p + (1 - y) ln(1 - p), p moved into [2^-23, 1 - 2^-23].

    Args:
        scores: (N,) probabilities of label 1.
        labels: (N,) 0 or 1.

    Raises:
        ShapeError: the lengths differ.
        DataError: no rows, a score outside [0, 1], or a label that is neither 0 nor 1.
    """
    return _defined(binary_metrics(scores, labels).log_loss, "log loss needs rows")


def normalised_entropy(scores: ArrayLike, labels: ArrayLike) -> float:
    """Log loss over that of always predicting the share of positives; below 1 is better than that.

    NE = LL / H(q), H(q) = -q ln q - (1 - q) ln(1 - q), q = share of positives in these rows.
    Source: He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", 2014, eq. (3).

    Raises:
        ShapeError: the lengths differ.
        DataError: as `log_loss`, or one class is absent.
    """
    return _defined(
        binary_metrics(scores, labels).normalised_entropy, "normalised entropy needs both classes"
    )


def calibration(scores: ArrayLike, labels: ArrayLike) -> float:
    """Sum of predicted probabilities over number of positives; 1 is right, above 1 predicts too much.

    Source: He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", 2014, section 2.

    Raises:
        ShapeError: the lengths differ.
        DataError: as `log_loss`, or there is no positive.
    """
    return _defined(binary_metrics(scores, labels).calibration, "calibration needs a positive")


def binary_metrics(scores: ArrayLike, labels: ArrayLike) -> BinaryMetrics:
    """Return all metrics of this module at once, NaN where one is not defined.

    Raises:
        ShapeError: the lengths differ.
        DataError: a score outside [0, 1], or a label that is neither 0 nor 1.
    """
    accumulator = BinaryAccumulator()
    accumulator.update(scores, labels)
    return accumulator.local_result()


def reliability(scores: ArrayLike, labels: ArrayLike, *, num_bins: int = 20) -> Reliability:
    """Cut the rows, by score, into bins of equal size; rows of equal score stay together.

    Returns:
        At most `num_bins` bins, lowest scores first; fewer where ties swallow a bin.

    Raises:
        ShapeError: the lengths differ.
        DataError: as `log_loss`.
    """
    checked, truth = check_probabilities(scores, labels)
    if not len(checked):
        raise DataError("reliability needs rows", remedy="Evaluate on more rows")
    order = np.argsort(checked, kind="stable")
    ordered, hits = checked[order].astype(np.float64), truth[order]
    cuts = np.arange(num_bins) * len(order) // num_bins
    starts = np.unique(np.searchsorted(ordered, ordered[cuts]))  # back to where each cut's tie begins
    rows = np.diff(np.append(starts, len(order)))
    mean_score = np.add.reduceat(ordered, starts) / rows
    return Reliability(rows, mean_score, np.add.reduceat(hits, starts, dtype=np.int64) / rows)


def check_probabilities(scores: ArrayLike, labels: ArrayLike) -> tuple[Array, Flags]:
    """Return (N,) scores and labels, checked.

    Raises:
        ShapeError: the lengths differ.
        DataError: a score is NaN or outside [0, 1], or a label is neither 0 nor 1.
    """
    checked = check_scores(scores)
    outside = (checked < 0) | (checked > 1)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        remedy = "Give probabilities: the sigmoid of the model's logits"
        value = checked[row].item()
        raise DataError("score is not a probability", row=row + 1, field="score", value=value, remedy=remedy)
    return checked, check_labels(labels, len(checked))


def row_losses(scores: Array, labels: Flags) -> Floats:
    """Return (N,) negative log likelihoods of checked rows [nats]."""
    given = np.clip(scores.astype(np.float64), CLIP, 1 - CLIP)
    return -np.log(np.where(labels, given, 1 - given))


@final
class BinaryAccumulator:
    """The metrics of this module over all rows that any rank has given: four sums.

    Order of rows and number of ranks move results by no more than the rounding of float64 sums.
    """

    def __init__(self) -> None:
        self._sums = ProbabilitySums(0, 0, 0.0, 0.0)

    def update(self, scores: ArrayLike, labels: ArrayLike) -> None:
        """Take (N,) probabilities and (N,) labels of this rank.

        Raises:
            ShapeError: the lengths differ.
            DataError: a score outside [0, 1], or a label that is neither 0 nor 1.
        """
        checked, truth = check_probabilities(scores, labels)
        self._sums = ProbabilitySums(
            self._sums.rows + len(truth),
            self._sums.positives + int(np.count_nonzero(truth)),
            self._sums.loss + float(row_losses(checked, truth).sum()),
            self._sums.predicted + float(checked.sum(dtype=np.float64)),
        )

    def result(self) -> BinaryMetrics:
        """Return the metrics over all ranks, the same on each. All ranks call it."""
        return self.joined(gather_objects(self.share()))

    def share(self) -> tuple[Any, ...]:
        """Return what this rank knows: its sums."""
        return tuple(self._sums)

    @staticmethod
    def joined(shares: Iterable[tuple[Any, ...]]) -> BinaryMetrics:
        """Return the metrics of all ranks' shares."""
        rows, positives, loss, predicted = zip(*shares, strict=True)
        return _metrics(ProbabilitySums(sum(rows), sum(positives), math.fsum(loss), math.fsum(predicted)))

    def local_result(self) -> BinaryMetrics:
        """Return the metrics over this process's rows alone."""
        return _metrics(self._sums)


def _metrics(sums: ProbabilitySums) -> BinaryMetrics:
    values = sums.log_loss(), sums.normalised_entropy(), sums.calibration()
    return BinaryMetrics(sums.rows, sums.positives, *map(float, values))


def _ratio(above: Any, below: Any) -> Any:
    below = np.asarray(below, np.float64)
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)


def _defined(value: float, problem: str) -> float:
    if math.isnan(value):
        raise DataError(problem, field="label", remedy="Evaluate on more rows")
    return value
