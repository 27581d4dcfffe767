"""What is asked of every run, and what its predictions answer; each kind of run has its own `measure_*`."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trec_semid.core.arrays import Array
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join
from trec_semid.metrics.bootstrap import Replicates
from trec_semid.report.collect import FinishedRun
from trec_semid.report.content import Curves, Example, Protocol, Reach

TOLERANCE = 1e-5
"""How far a metric of `metrics.json` may lie from the one taken from the predictions."""


class Key(NamedTuple):
    """Which number."""

    protocol: Protocol
    stratum: str | None
    metric: str

    @property
    def name(self) -> str:
        """What `metrics.json` calls the number, of the test part."""
        part = "test-frozen" if self.protocol == "frozen" else "test"
        return f"{part}/{self.metric}" + (f"/{self.stratum}" if self.stratum else "")


class Asked(NamedTuple):
    """Which numbers a report of some kind of runs holds."""

    protocols: Sequence[Protocol]
    """The one that the answer speaks of, and whose slices are shown, comes first."""
    metrics: Sequence[str]
    """On the whole test part, by arm."""
    compared: Sequence[str]
    """Those with a paired difference from the baseline."""
    sliced: Sequence[str]
    """Those by popularity and activity."""
    headline: str
    """The one that the answer speaks of."""
    per_slice: str
    """The count that says how large a slice is."""


class RunMeasures(NamedTuple):
    """What one run's predictions say."""

    draws: dict[str, Replicates]
    """Of the test part by `Key.name`; undefined metrics, and slices of fewer than two users, are absent."""
    valid: dict[Key, float]
    counts: dict[str, int]
    """Of the test part, as in `metrics.json` without the part's name."""
    undrawn: dict[Key, float] = {}
    """Numbers of the test part that no draw of users can be made of."""


class Measured(NamedTuple):
    """What all arms say, and what of it is to be shown."""

    asked: Asked
    arms: list[list[RunMeasures]]
    """Of every arm its runs, in the order of their seeds."""
    curves: list[Curves] = []
    reach: list[Reach] = []
    examples: list[Example] = []
    notes: list[str] = []


def expect_same_rows(
    run: FinishedRun,
    rows: Mapping[str, Array],
    first: FinishedRun,
    first_rows: Mapping[str, Array],
    remedy: str,
) -> None:
    """Refuse a run whose test part is not that of the first run.

    Args:
        run: the run.
        rows: columns (n,) of its predictions that have to be alike.
        first: the first run.
        first_rows: its columns.
        remedy: what to do about it.

    Raises:
        DataError: they differ.
    """
    for name, column in rows.items():
        if not np.array_equal(column, first_rows[name]):
            raise DataError(
                f"the test rows of this run are not those of run '{first.name}'",
                file=join(run.uri, "predictions"),
                field=name,
                remedy=remedy,
            )


def expect_own_metrics(run: FinishedRun, own_metrics: Mapping[str, float]) -> None:
    """Refuse a run whose metrics were not taken from the predictions that lie beside them.

    Args:
        run: the run.
        own_metrics: metrics taken from its predictions, under the names of `metrics.json`.

    Raises:
        DataError: a metric is another.
    """
    stated = run.result["metrics"]
    for key, value in own_metrics.items():
        if key in stated and abs(stated[key] - value) > TOLERANCE * max(1.0, abs(value)):
            raise DataError(
                f"the run's predictions give {value:.6f}: metrics and predictions are not of one run",
                file=join(run.uri, "metrics.json"),
                field=key,
                value=stated[key],
                remedy="Run it again",
            )
