"""Where targets stand in their users' lists: `predictions/<split>-rank-<r>.parquet`, one file a rank.

row       int64, position within the split's targets (user after user), each once over all ranks
user_row  int64, ascending with `row`
item_row  int64, the target
rank      int64, its position in the user's list, from 1; see `metrics.target_positions`

Written by `PredictionWriter(..., schema=TARGET_SCHEMA)`.

Legend: U users, T targets of all users.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from trec_semid.core.arrays import Floats, Ints
from trec_semid.core.errors import DataError
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.sequences import EvaluationRows
from trec_semid.data.schema import Split
from trec_semid.evaluation.predictions import predictions_uri, read_columns
from trec_semid.evaluation.strata import Strata
from trec_semid.metrics.bootstrap import Replicates, bootstrap_user_means
from trec_semid.metrics.retrieval import per_user_retrieval

TARGET_SCHEMA = pa.schema([(name, pa.int64()) for name in ("row", "user_row", "item_row", "rank")])
RETRIEVAL_CUTOFFS = (5, 10, 50, 100)


class TargetPositions(NamedTuple):
    """All targets of a split, in order of `row`; fields as in the file, where the last is called `rank`."""

    row: Ints
    user_row: Ints
    item_row: Ints
    position: Ints

    def columns(self) -> dict[str, Ints]:
        """Return (T,) columns under their names in the file, as `PredictionWriter.write` takes them."""
        return dict(zip(TARGET_SCHEMA.names, self, strict=True))


class TargetsOfUsers(NamedTuple):
    """Some of the targets, such as those of a stratum."""

    positions: Ints
    """(T,) user after user."""
    lengths: Ints
    """(U,) how many of them each user has; 0 for a user who has none of them."""

    def values(self, cutoffs: Sequence[int]) -> dict[str, Floats]:
        """Return (U,) `recall@N` and `ndcg@N` for each cutoff, NaN for users without such targets."""
        return per_user_retrieval(self.positions, self.lengths, cutoffs)


def read_target_positions(run_uri: str, split: Split) -> TargetPositions:
    """Read the positions that all ranks of a retrieval run wrote, in order of `row`.

    Raises:
        DataError: as `read_columns`, or a position below 1, or targets that do not come user after user.
    """
    targets = TargetPositions(*read_columns(run_uri, split, TARGET_SCHEMA))
    for field, wrong, problem in (
        ("rank", targets.position < 1, "ranks start at 1"),
        ("user_row", np.diff(targets.user_row, prepend=0) < 0, "targets do not come user after user"),
    ):
        if wrong.any():
            row, file = int(np.argmax(wrong)), predictions_uri(run_uri, split, 0)
            value, remedy = int(targets.columns()[field][row]), "Evaluate again"
            raise DataError(problem, file=file, row=row + 1, field=field, value=value, remedy=remedy)
    return targets


def distinct_targets(rows: EvaluationRows) -> EvaluationRows:
    """Return the rows with every target of a user once, in the order of its first event."""
    items, lengths = rows.targets.take(np.arange(len(rows.users)))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    _, first = np.unique(np.stack((owner, items)), axis=1, return_index=True)
    # np.unique sorts by item; sorting where each came first brings back the order of events.
    first_rows = np.sort(first)
    counts = np.bincount(owner[first_rows], minlength=len(lengths))
    return rows._replace(targets=Ragged(np.cumsum(counts) - counts, counts, items[first_rows]))


def targets_by_stratum(
    owner: Ints, num_users: int, targets: TargetPositions, strata: Strata | None
) -> Iterator[tuple[str, TargetsOfUsers]]:
    """Yield all targets under "", then those of each stratum under "/<stratum>".

    A stratum of popularity has the targets that are such items, one of activity those of such users.
    Positions stay what they are in the list of the whole catalogue; recall is the share of the stratum's
    targets in the list, and NDCG's ideal list has them alone.

    Args:
        owner: (T,) whose target it is, ascending from 0 to num_users - 1.
        num_users: U.
        targets: (T,) of these users.
        strata: none but "" where not given.

    Raises:
        DataError: a user or item that the strata do not know.
    """
    yield "", TargetsOfUsers(targets.position, np.bincount(owner, minlength=num_users))
    for name, mask in strata.masks(targets.user_row, targets.item_row) if strata else ():
        lengths = np.bincount(owner[mask], minlength=num_users)
        yield f"/{name}", TargetsOfUsers(targets.position[mask], lengths)


def bootstrap_target_positions(
    targets: TargetPositions,
    strata: Strata | None = None,
    *,
    cutoffs: Sequence[int] = RETRIEVAL_CUTOFFS,
    num_replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Replicates]:
    """Return `recall@N[/<stratum>]` and `ndcg@N[/<stratum>]` with their values under draws of users.

    Runs over the same users and targets have the same draws, so that `metrics.intervals` can pair them. A
    stratum without users is left out.

    Args:
        targets: of one run.
        strata: where given, every metric also per stratum.
        cutoffs: each N.
        num_replicates: draws.
        seed: of the draws; equal for runs that are to be compared.
    """
    users, owner = np.unique(targets.user_row, return_inverse=True)
    values = {
        name + suffix: column
        for suffix, part in targets_by_stratum(owner, len(users), targets, strata)
        for name, column in part.values(cutoffs).items()
    }
    rows = targets.user_row, targets.item_row
    return bootstrap_user_means(values, *rows, num_replicates=num_replicates, seed=seed)
