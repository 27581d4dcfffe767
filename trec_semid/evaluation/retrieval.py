"""Every retrieval metric, over all users and per stratum, under the names that `metrics.json` uses.

recall@N    mean over users of the share of their targets among the first N of their list; with one target
            a user the hit rate of leave-one-out
ndcg@N      mean over users of DCG@N / ideal DCG@N, gain 1 a target; see `metrics.retrieval.ndcg_at`
coverage@N  share of the catalogue that is among the first N of anyone's list

Lists are of the whole catalogue; `metrics.target_positions` says how ties are ordered and what is masked. In
`<metric>@N/<stratum>` only targets of the stratum count, and users without such a target are left out;
`coverage@N/popularity_*` is the share of the stratum's items, in anyone's list. Cold items, those without
a training event, are `popularity_unseen`. A stratum without users, or without items, is left out.

Legend: B users, T targets of all users (user after user), N cutoff.
"""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike

from trec_semid.core.arrays import Floats, Int32s, Ints
from trec_semid.core.errors import DataError, ShapeError
from trec_semid.evaluation.ranking import Named
from trec_semid.evaluation.strata import POPULARITY, STRATA, Strata
from trec_semid.evaluation.target_positions import RETRIEVAL_CUTOFFS, TargetPositions, targets_by_stratum
from trec_semid.runtime.ranks import gather_objects

RETRIEVAL_COUNTS = ("users", "targets")
"""`<count>` or `<count>/<stratum>`; always there, 0 included."""
_UNSEEN = np.iinfo(np.int32).max


def retrieval_metrics(
    targets: TargetPositions, strata: Strata | None = None, *, cutoffs: Sequence[int] = RETRIEVAL_CUTOFFS
) -> Named:
    """Return metrics, but for coverage, and counts of targets whose positions are at hand.

    Raises:
        DataError: a user or item that the strata do not know.
    """
    sums = _Sums(strata, cutoffs)
    users, owner = np.unique(targets.user_row, return_inverse=True)
    sums.update(owner, len(users), targets)
    return sums.named(sums.totals)


@final
class RetrievalAccumulator:
    """The metrics of this module over all users that any rank has given.

    Recall and NDCG of each user are rounded to multiples of 2^-64 and summed in integers, and coverage is
    the best place that each item had: neither the order of users nor the number of ranks changes a bit.
    Memory: 4 bytes an item.
    """

    def __init__(
        self, strata: Strata | None, num_items: int, *, cutoffs: Sequence[int] = RETRIEVAL_CUTOFFS
    ) -> None:
        self._strata, self._cutoffs = strata, tuple(cutoffs)
        self._sums = _Sums(strata, cutoffs)
        self._best_place = np.full(num_items, _UNSEEN, np.int32)

    def update(
        self,
        user_rows: ArrayLike,
        lengths: ArrayLike,
        target_rows: ArrayLike,
        positions: ArrayLike,
        top_items: ArrayLike,
    ) -> None:
        """Take this rank's users, each once over all calls and ranks.

        Args:
            user_rows: (B,)
            lengths: (B,) targets of each user; a user without targets counts for coverage alone.
            target_rows: (T,) item rows.
            positions: (T,) from 1; `metrics.target_positions`.
            top_items: (B, M) item rows of each user's list, best first, M >= the largest cutoff; -1 where
                the list is shorter.

        Raises:
            ShapeError: sizes that do not fit.
            DataError: a user or item that the strata or the catalogue do not know, or a position below 1.
        """
        users, sizes, items, places = map(np.asarray, (user_rows, lengths, target_rows, positions))
        top = np.asarray(top_items)
        self._expect_sizes(users, sizes, items, places, top)
        if (places < 1).any():
            row = int(np.argmax(places < 1))
            remedy = "Give places in the list, the first of them 1"
            raise DataError("no such rank", row=row + 1, field="rank", value=int(places[row]), remedy=remedy)
        owner = np.repeat(np.arange(len(users)), sizes)
        targets = TargetPositions(np.arange(len(items)), users[owner], items, places)
        self._sums.update(owner, len(users), targets)
        self._show(top[:, : max(self._cutoffs)])

    def result(self) -> Named:
        """Return metrics and counts over all ranks, the same on each. All ranks call it."""
        totals = np.sum(gather_objects(self._sums.totals), axis=0)
        best_place = torch.from_numpy(self._best_place.copy())
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(best_place, op=dist.ReduceOp.MIN)
        metrics, counts = self._sums.named(totals)
        if counts["users"]:
            metrics |= self._coverage(best_place.numpy())
        return metrics, counts

    def _coverage(self, best_place: Int32s) -> dict[str, float]:
        parts = {"": np.ones(len(best_place), np.bool_)}
        if self._strata:
            parts |= {f"/{name}": self._strata.items == index for index, name in enumerate(POPULARITY)}
        return {
            f"coverage@{cutoff}{suffix}": float(np.mean(best_place[part] <= cutoff))
            for suffix, part in parts.items()
            if part.any()
            for cutoff in self._cutoffs
        }

    def _show(self, top: Ints) -> None:
        user, place = np.nonzero(top >= 0)
        items = top[user, place]
        if len(items) and items.max() >= len(self._best_place):
            remedy = f"The catalogue has rows 0 to {len(self._best_place) - 1}"
            raise DataError("no such item", field="top_items", value=int(items.max()), remedy=remedy)
        # An item may come several times in a batch: a plain assignment would keep its last place, not its
        # best.
        np.minimum.at(self._best_place, items, (place + 1).astype(np.int32))

    def _expect_sizes(self, users: Ints, sizes: Ints, *rest: Ints) -> None:
        items, places, top = rest
        shapes = {
            "lengths": (sizes.shape, users.shape),
            "target_rows": (items.shape, (int(sizes.sum()),)),
            "positions": (places.shape, items.shape),
            "top_items": (top.shape, (len(users), max(*top.shape[1:], *self._cutoffs))),
        }
        for name, (got, expected) in shapes.items():
            if got != expected:
                raise ShapeError(f"{name}: wrong shape (got {got}, expected {expected}).")


class _Sums:
    """Sums over users of every metric but coverage, overall and per stratum, in integers."""

    def __init__(self, strata: Strata | None, cutoffs: Sequence[int]) -> None:
        self._strata = strata
        self._names = [f"{metric}@{cutoff}" for metric in ("recall", "ndcg") for cutoff in cutoffs]
        self._cutoffs = cutoffs
        self._suffixes = ["", *(f"/{name}" for name in STRATA)] if strata else [""]
        self.totals = np.zeros((len(self._suffixes), 2 * len(self._names) + len(RETRIEVAL_COUNTS)), np.int64)
        """Of each suffix: high halves, low halves, counts."""

    def update(self, owner: Ints, num_users: int, targets: TargetPositions) -> None:
        """Add the targets of some users; see `targets_by_stratum`."""
        parts = targets_by_stratum(owner, num_users, targets, self._strata)
        for at, (_, part) in enumerate(parts):
            values = part.values(self._cutoffs)
            defined = part.lengths > 0
            table = np.stack([values[name][defined] for name in self._names])
            counts = np.array([np.count_nonzero(defined), len(part.positions)])
            self.totals[at] += np.concatenate((*_halves(table), counts))

    def named(self, totals: Ints) -> Named:
        """Return metrics and counts."""
        metrics: dict[str, float] = {}
        counts: dict[str, int] = {}
        for suffix, total in zip(self._suffixes, totals.tolist(), strict=True):
            num_users, num_targets = total[-2:]
            counts |= {f"users{suffix}": num_users, f"targets{suffix}": num_targets}
            halves = zip(self._names, total[: len(self._names)], total[len(self._names) : -2], strict=True)
            for name, high, low in halves if num_users else ():
                # Python's integers have no bounds here, and the only rounding is that of this division.
                metrics[name + suffix] = ((high << 32) + low) / (num_users << 64)
        return metrics, counts


def _halves(values: Floats) -> tuple[Ints, Ints]:
    """Return row sums of (M, n) numbers in [0, 1] as high · 2^-32 + low · 2^-64, exact below 2^31 columns."""
    high = np.floor(np.ldexp(values, 32))
    low = np.rint(np.ldexp(np.ldexp(values, 32) - high, 32))
    return high.astype(np.int64).sum(1), low.astype(np.int64).sum(1)
