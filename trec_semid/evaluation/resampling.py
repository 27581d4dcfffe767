"""Metrics of finished runs under draws of users, read from their predictions and named as in `metrics.json`.

    <split>[-frozen]/<auc, gauc, ...>[/<stratum>]        of rankers
    <split>/<recall or ndcg>@<N>[/<stratum>]             of retrievers

Coverage and what tokenizers say cannot be drawn: they are no means over users.

Legend: N rows, B draws of users.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trec_semid.core.arrays import Array
from trec_semid.core.paths import exists
from trec_semid.data.schema import Split, open_dataset
from trec_semid.evaluation.evaluated import dataset_of, strata_config_of, tests_then_trains
from trec_semid.evaluation.predictions import Predictions, predictions_uri, read_predictions
from trec_semid.evaluation.strata import Strata, StrataConfig, training_strata
from trec_semid.evaluation.target_positions import bootstrap_target_positions, read_target_positions
from trec_semid.metrics.bootstrap import USER_METRICS, Replicates, bootstrap
from trec_semid.metrics.verdicts import fewest_draws

MIN_DRAWS = 200
MAX_ROW_DRAWS = 1_000_000_000
"""Rows × runs × draws that a comparison may cost: about two minutes on one core."""
_OF_RANKERS = re.compile(
    rf"(?P<split>valid|test)(?P<frozen>-frozen)?/(?P<metric>{'|'.join(USER_METRICS)})(/(?P<stratum>\w+))?"
)
_OF_RETRIEVERS = re.compile(
    r"(?P<split>valid|test)/(?P<metric>(?:recall|ndcg)@(?P<cutoff>\d+))(/(?P<stratum>\w+))?"
)


class Draws(NamedTuple):
    """How users are drawn; the same for runs that are to be compared."""

    number: int
    """B."""
    seed: int = 0


class RankerMetric(NamedTuple):
    """A metric of rankers that rows of users define, such as `test-frozen/gauc/popularity_tail`."""

    name: str
    split: Split
    is_frozen: bool
    metric: str
    stratum: str | None


def choose_draws(asked: int, num_rows: int, num_runs: int, num_compared: int = 1) -> int:
    """Return how many draws of users to make.

    Those that are asked for, or fewer where the split is large; but as many as it takes for one of
    `num_compared` arms to be told apart from the baseline.
    """
    affordable = MAX_ROW_DRAWS // max(num_rows * num_runs, 1)
    return max(min(asked, max(MIN_DRAWS, affordable)), fewest_draws(num_compared))


def ranker_metrics(names: Iterable[str]) -> list[RankerMetric]:
    """Return those of the metrics that predictions of rankers give."""
    matches = [match for name in names if (match := _OF_RANKERS.fullmatch(name))]
    return [
        RankerMetric(m[0], _split(m["split"]), bool(m["frozen"]), m["metric"], m["stratum"]) for m in matches
    ]


def draw_ranker(
    predictions: Sequence[Predictions],
    metrics: Sequence[RankerMetric],
    strata: Sequence[Strata | None],
    draws: Draws,
) -> dict[str, Replicates]:
    """Return metrics of one split by name, with their values under draws of users.

    Rows of several predictions are laid end to end before a metric is taken: the folds of an item holdout
    then make one sample, in which rows of one user carry scores of several models.

    Args:
        predictions: of one run, or of every fold.
        metrics: what to take, all of the predictions' split; those that the rows do not define are left out.
        strata: of each one's dataset, where a metric has a stratum.
        draws: how users are drawn.
    """
    slices: dict[tuple[bool, str | None], list[RankerMetric]] = {}
    for metric in metrics:
        slices.setdefault((metric.is_frozen, metric.stratum), []).append(metric)
    replicates: dict[str, Replicates] = {}
    for (is_frozen, stratum), of_slice in slices.items():
        parts = [_select(one, is_frozen, stratum, own) for one, own in zip(predictions, strata, strict=True)]
        drawn = bootstrap(
            *(np.concatenate(columns) for columns in zip(*parts, strict=True)),
            metrics=[metric.metric for metric in of_slice],
            num_replicates=draws.number,
            seed=draws.seed,
        )
        replicates |= {metric.name: drawn[metric.metric] for metric in of_slice if metric.metric in drawn}
    return replicates


def _select(
    predictions: Predictions, is_frozen: bool, stratum: str | None, strata: Strata | None
) -> tuple[Array, Array, Array]:
    """Return (N,) scores, labels and users of a slice."""
    scores = predictions.score_frozen if is_frozen else predictions.score
    columns = (scores, predictions.label, predictions.user_row)
    if stratum is None or strata is None:
        return columns
    masks = dict(strata.masks(predictions.user_row, predictions.item_row))
    mask = masks.get(stratum, np.zeros(len(scores), bool))
    return scores[mask], predictions.label[mask], predictions.user_row[mask]


class RunReader:
    """Draws metrics of run folders; strata of a dataset are counted once for each way to cut them."""

    def __init__(self) -> None:
        self._strata: dict[tuple[str, StrataConfig, bool], Strata] = {}

    def draw_rankers(
        self, folders: Sequence[str], metrics: Sequence[RankerMetric], draws: Mapping[Split, Draws]
    ) -> dict[str, Replicates]:
        """Return metrics of a ranker by name, or of the folds of one, with their values under draws of users.

        Args:
            folders: finished runs of `rank`, or evaluations of such.
            metrics: what to take.
            draws: how users are drawn, of each split that a metric is of.

        Raises:
            DataError: predictions are absent or damaged.
        """
        replicates: dict[str, Replicates] = {}
        for split in _splits(metric.split for metric in metrics):
            of_split = [metric for metric in metrics if metric.split == split]
            needs_strata = any(metric.stratum for metric in of_split)
            strata = [self._strata_of(folder) if needs_strata else None for folder in folders]
            predictions = [read_predictions(folder, split) for folder in folders]
            replicates |= draw_ranker(predictions, of_split, strata, draws[split])
        return replicates

    def draw_retriever(
        self, folder: str, names: Iterable[str], draws: Mapping[Split, Draws]
    ) -> dict[str, Replicates]:
        """Return those of the metrics that positions of targets give, with their values under draws of users.

        A split without a file of positions has none.

        Args:
            folder: finished run of `retrieve`, or an evaluation of such.
            names: such as `test/ndcg@10/popularity_tail`.
            draws: how users are drawn, of each split.

        Raises:
            DataError: positions are damaged.
        """
        matches = [match for name in names if (match := _OF_RETRIEVERS.fullmatch(name))]
        replicates: dict[str, Replicates] = {}
        for split in _splits(_split(match["split"]) for match in matches):
            if not has_predictions(folder, split):
                continue
            of_split = [match for match in matches if match["split"] == split]
            drawn = bootstrap_target_positions(
                read_target_positions(folder, split),
                self._strata_of(folder) if any(match["stratum"] for match in of_split) else None,
                cutoffs=sorted({int(match["cutoff"]) for match in of_split}),
                num_replicates=draws[split].number,
                seed=draws[split].seed,
            )
            within = len(split) + 1
            replicates |= {
                match[0]: drawn[match[0][within:]] for match in of_split if match[0][within:] in drawn
            }
        return replicates

    def _strata_of(self, folder: str) -> Strata:
        dataset, cuts = dataset_of(folder), strata_config_of(folder)
        asked = dataset, cuts, tests_then_trains(folder)
        if asked not in self._strata:
            opened = open_dataset(dataset)
            self._strata[asked] = training_strata(opened, cuts, test_then_train=asked[-1])
        return self._strata[asked]


def has_predictions(folder: str, split: Split) -> bool:
    """Return whether a run wrote predictions of a split."""
    return exists(predictions_uri(folder, split, 0))


def _split(name: str) -> Split:
    return "valid" if name == "valid" else "test"


def _splits(names: Iterable[Split]) -> list[Split]:
    return sorted(set(names))
