"""Everything ranking batches are built from, read once and held in memory."""

from typing import NamedTuple, final

import numpy as np
import torch

from trec_semid.core.arrays import Array
from trec_semid.core.errors import DataError
from trec_semid.data.features import (
    Feature,
    FeaturesConfig,
    Representation,
    check_ids,
    describe_features,
    read_sources,
)
from trec_semid.data.histories import HistoryConfig, Protocol, index_histories, read_events
from trec_semid.data.prefixes import prefix_ids
from trec_semid.data.ranking.loader import BatchMaker, DistinctItems, RankingRows
from trec_semid.data.schema import SPLITS, Dataset, Split


class Codes(NamedTuple):
    """Semantic IDs of all items in row order, as `data` knows them."""

    codes: Array
    """(num_items, R) integers."""
    sizes: tuple[int, ...]
    """Codebook size of each position; a code equal to it means 'missing'."""


@final
class RankingData:
    """A dataset as ranking rows, features and histories.

    Every id is checked here, once, for all rows. Memory: three int64 columns, label and split of every event,
    two sorted int64 columns for each history protocol, and the codes of all items.
    """

    def __init__(
        self,
        dataset: Dataset,
        features: FeaturesConfig,
        history: HistoryConfig,
        representation: Representation,
        codes: Codes | None,
    ) -> None:
        sizes = codes.sizes if codes and representation != "item" else ()
        self.features = describe_features(
            dataset, features, representation, sizes, with_history=history.max_len > 0
        )
        used = codes if sizes else None
        prefixes = None
        if used and features.prefixes:
            prefixes = prefix_ids(torch.tensor(used.codes), used.sizes, features.prefixes).numpy()
        self._sources = read_sources(dataset, self.features, used.codes if used else None, prefixes)
        self._file, self._history = dataset.uri, history
        self.events = read_events(dataset)
        self._check_events(dataset.facts.num_items)
        self._indexes = index_histories(self.events, history)

    def batch_maker(
        self,
        split: Split,
        protocol: Protocol,
        *,
        distinct_items: DistinctItems | None = None,
        pinned: bool = False,
    ) -> BatchMaker:
        """Return what makes batches of a split's rows.

        Args:
            split: which rows.
            protocol: which earlier events stand in histories. Training rows are given the frozen one,
                which holds no evaluation rows whatever the split rule.
            distinct_items: given where batches bring items by row instead of their codes.
            pinned: whether batches lie in page-locked memory.

        Raises:
            DataError: the split is empty or a row has no label.
        """
        return BatchMaker(
            self._rows(split, protocol),
            self.features,
            self._sources,
            distinct_items=distinct_items,
            pinned=pinned,
        )

    def train_counts(self) -> tuple[Array, Array]:
        """Return how many training events each user (num_users,) and each item (num_items,) has.

        Sampled negatives are left out: popularity and activity are of what was observed.
        """
        is_train = (self.events.splits == 0) & ~self.events.is_negative
        users, items = self.events.users[is_train], self.events.items[is_train]
        return np.bincount(users, minlength=self._num_users), np.bincount(items, minlength=self._num_items)

    def _rows(self, split: Split, protocol: Protocol) -> RankingRows:
        events = self.events
        chosen = np.flatnonzero(events.splits == SPLITS.index(split))
        if not len(chosen):
            remedy = "Prepare the dataset with another split rule"
            raise DataError(f"no {split} events", file=self._file, field="split", remedy=remedy)
        labels = events.labels[chosen]
        if np.isnan(labels).any():
            row = int(chosen[np.argmax(np.isnan(labels))])
            remedy = "Ranking needs a label on every event: state a label rule in the prepare config"
            raise DataError(
                "event without a label", file=self._file, row=row + 1, field="label", remedy=remedy
            )
        users, when = events.users[chosen], events.when[chosen]
        max_len = self._history.max_len
        histories = self._indexes[protocol].before(users, when, max_len) if max_len else None
        return RankingRows(users, events.items[chosen], labels, histories)

    def _check_events(self, num_items: int) -> None:
        user = next(feature for feature in self.features if feature.role == "user")
        self._num_users, self._num_items = user.num_rows, num_items
        check_ids(user._replace(name="user_row"), self.events.users, self._file)
        check_ids(Feature("item_row", "item", "t_item_id", num_items), self.events.items, self._file)
