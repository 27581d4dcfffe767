"""What a ranker is trained and judged on, whether it lies in memory or is streamed."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from trec_semid.core.arrays import Array
from trec_semid.data.batches import RankingBatch
from trec_semid.data.epochs import EpochBatches
from trec_semid.data.features import FeaturesConfig, Representation, describe_features, read_sources
from trec_semid.data.histories import HistoryConfig, Protocol
from trec_semid.data.prefixes import prefix_ids
from trec_semid.data.ranking.batch_maker import BatchMaker, DistinctItems
from trec_semid.data.ranking.rows import RankingRows
from trec_semid.data.schema import Dataset, Split


class Codes(NamedTuple):
    """Semantic IDs of all items in row order, as `data` knows them."""

    codes: Array
    """(num_items, R) integers."""
    sizes: tuple[int, ...]
    """Codebook size of each position; a code equal to it means 'missing'."""


class Asked(NamedTuple):
    """Which batches are asked for."""

    batch_size: int
    """Rows of a global batch, which ranks share."""
    rank: int = 0
    world_size: int = 1
    distinct_items: DistinctItems | None = None
    """Given where batches bring items by row instead of their codes."""
    pinned: bool = False
    """Whether batches lie in page-locked memory."""


class RankingSource(ABC):
    """A dataset as ranking rows with features and histories."""

    def __init__(
        self,
        dataset: Dataset,
        features: FeaturesConfig,
        history: HistoryConfig,
        representation: Representation,
        codes: Codes | None,
    ) -> None:
        """Read what is known of users and items; every id of their fields and codes is checked.

        Raises:
            ConfigError: an unknown side field.
            DataError: an id outside its table.
        """
        sizes = codes.sizes if codes and representation != "item" else ()
        self.features = describe_features(
            dataset, features, representation, sizes, with_history=history.max_len > 0
        )
        used = codes if sizes else None
        prefixes = None
        if used and features.prefixes:
            prefixes = prefix_ids(torch.tensor(used.codes), used.sizes, features.prefixes).numpy()
        self._sources = read_sources(dataset, self.features, used.codes if used else None, prefixes)

    @abstractmethod
    def num_rows(self, split: Split) -> int:
        """Return how many rows a split has."""

    @abstractmethod
    def mean_lengths(self) -> dict[str, float]:
        """Return the average number of ids of each feature in training, which table placement depends on."""

    @abstractmethod
    def train_counts(self) -> tuple[Array, Array]:
        """Return how many training events each user (num_users,) and each item (num_items,) has.

        Sampled negatives are left out: popularity and activity are of what was observed.
        """

    @abstractmethod
    def label_counts(self, split: Split) -> tuple[Array, Array]:
        """Return how many rows of label 0 and of label 1 each user has, both (num_users,)."""

    @abstractmethod
    def training(self, asked: Asked, seed: int) -> EpochBatches[RankingBatch]:
        """Return shuffled training rows; their histories hold training events only, whatever the split rule.

        Raises:
            DataError: there are no training rows, or one has no label.
        """

    @abstractmethod
    def evaluation(self, split: Split, protocol: Protocol, asked: Asked) -> Iterator[RankingBatch]:
        """Yield this rank's rows of a split, each once over all ranks, in as many batches on every rank.

        Args:
            split: which rows.
            protocol: which earlier events stand in their histories. Rows come alike under either.
            asked: the batches.

        Raises:
            DataError: the split is empty or a row has no label.
        """

    def maker_of(self, rows: RankingRows, asked: Asked | None = None) -> BatchMaker:
        """Return what makes batches of some rows."""
        asked = asked or Asked(1)
        return BatchMaker(
            rows, self.features, self._sources, distinct_items=asked.distinct_items, pinned=asked.pinned
        )


def counts_of_labels(users: Array, labels: Array, num_users: int) -> tuple[Array, Array]:
    """Return how many of (n,) rows each user has of label 0 and of label 1; NaN is unknown and neither."""
    zeros, ones = labels <= 0.5, labels > 0.5
    return np.bincount(users[zeros], minlength=num_users), np.bincount(users[ones], minlength=num_users)
