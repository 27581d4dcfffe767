"""Lists of the whole catalogue for every user of a split: metrics over all ranks, and ranks on disk.

Legend: B users of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from trec_semid.core.arrays import Array
from trec_semid.data.retrieval.dataset import RetrievalData
from trec_semid.data.retrieval.sequences import EvaluationRows
from trec_semid.data.schema import Split
from trec_semid.evaluation.predictions import PredictionWriter
from trec_semid.evaluation.ranking import Named
from trec_semid.evaluation.retrieval import RetrievalAccumulator
from trec_semid.evaluation.strata import Strata, strata_of_counts
from trec_semid.evaluation.target_positions import TARGET_SCHEMA, distinct_targets
from trec_semid.metrics.target_positions import ListedTargets, UserItems
from trec_semid.runtime.logs import working
from trec_semid.runtime.ranks import Ranks, leave_if_asked
from trec_semid.runtime.runs import RunFolder
from trec_semid.training.retrieval.search import PopularitySearch, Search
from trec_semid.training.retrieval.setup import RetrieveConfig


class Lists(NamedTuple):
    """Some users of this rank."""

    rows: Array
    """(B,) positions among the users of the split."""
    places: ListedTargets
    """Of their targets, user after user."""


@dataclass(frozen=True)
class Evaluator:
    """Lists the catalogue for every user of a split, on all ranks together."""

    search: Search
    model: nn.Module | None
    """What the search asks, put into evaluation mode; None where it asks none."""
    data: RetrievalData
    config: RetrieveConfig
    ranks: Ranks

    def metrics(self) -> dict[str, float]:
        """Return metrics of the validation split over all ranks, without strata."""
        rows = self.rows("valid")
        accumulator = RetrievalAccumulator(None, self.data.num_items, cutoffs=self.config.evaluation.cutoffs)
        for lists in self.lists(rows):
            _take(accumulator, rows, lists)
        return accumulator.result()[0]

    def write(self, folder: RunFolder) -> Named:
        """Evaluate validation and test, write the ranks of all targets, and return metrics and counts."""
        strata = strata_of_counts(self.data.item_counts, self.data.user_counts)
        metrics: dict[str, float] = {}
        counts: dict[str, int] = {}
        splits: tuple[Split, ...] = ("valid", "test")
        for split in splits:
            rows = self.rows(split)
            values, sizes = self._write_split(folder, split, rows, strata)
            sizes["users_without_history"] = int((rows.histories.lengths == 0).sum())
            metrics |= {f"{split}/{name}": value for name, value in values.items()}
            counts |= {f"{split}/{name}": value for name, value in sizes.items()}
        return metrics, counts

    def rows(self, split: Split) -> EvaluationRows:
        """Return the users of a split with what they did before, and each of their targets once."""
        return distinct_targets(self.data.sequences.evaluation_rows(split, self.config.sequences.max_len))

    @torch.no_grad()
    def lists(self, rows: EvaluationRows) -> Iterator[Lists]:
        """Yield lists of this rank's users, in as many batches on every rank; all ranks run it to the end.

        A user without a history tells a model nothing and gets the most popular items.
        """
        world, length = self.ranks.world_size, max(self.config.evaluation.cutoffs)
        popular = PopularitySearch(self.data, self.ranks)
        if self.model is not None:
            self.model.eval()
        self.search.begin()
        size = world * min(-(-self.config.train.evaluation_batch_size // world), self.search.users_at_once)
        for start in range(0, len(rows.users), size):
            leave_if_asked()
            chosen = np.arange(start, min(start + size, len(rows.users)))[self.ranks.rank :: world]
            is_known = rows.histories.lengths[chosen] > 0
            for search, own in ((self.search, chosen[is_known]), (popular, chosen[~is_known])):
                places = search.places(rows.histories, own, self._users(rows, own), length)
                if places is not None:
                    yield Lists(own, places)

    def _users(self, rows: EvaluationRows, chosen: Array) -> UserItems:
        earlier = rows.earlier.take(chosen)
        if not self.config.evaluation.masks_history:
            earlier = np.zeros(0, np.int64), np.zeros_like(chosen)
        parts = (*rows.targets.take(chosen), *earlier)
        return UserItems(*(torch.from_numpy(part).to(self.ranks.device) for part in parts))

    def _write_split(self, folder: RunFolder, split: Split, rows: EvaluationRows, strata: Strata) -> Named:
        cutoffs, ranks = self.config.evaluation.cutoffs, self.ranks
        accumulator = RetrievalAccumulator(strata, self.data.num_items, cutoffs=cutoffs)
        firsts = np.cumsum(rows.targets.lengths) - rows.targets.lengths
        with (
            PredictionWriter(
                folder.uri,
                split,
                rank=ranks.rank,
                world_size=ranks.world_size,
                num_rows=int(rows.targets.lengths.sum()),
                schema=TARGET_SCHEMA,
            ) as writer,
            working(f"retrieve {split}", len(rows.users), shown=ranks.is_main) as work,
        ):
            for lists in self.lists(rows):
                _take(accumulator, rows, lists)
                items, lengths = rows.targets.take(lists.rows)
                within = np.arange(len(items)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                writer.write(
                    row=np.repeat(firsts[lists.rows], lengths) + within,
                    user_row=np.repeat(rows.users[lists.rows], lengths),
                    item_row=items,
                    rank=lists.places.positions.cpu().numpy(),
                )
                work.advance(len(lists.rows) * ranks.world_size)
        return accumulator.result()


def _take(accumulator: RetrievalAccumulator, rows: EvaluationRows, lists: Lists) -> None:
    targets, lengths = rows.targets.take(lists.rows)
    found, shown = lists.places.positions.cpu().numpy(), lists.places.top_items.cpu().numpy()
    accumulator.update(rows.users[lists.rows], lengths, targets, found, shown)
