"""Everything ranking batches are built from, read once and held in memory."""

from collections.abc import Iterator
from typing import final

import numpy as np

from trec_semid.core.arrays import Array
from trec_semid.core.errors import DataError
from trec_semid.core.seeds import numpy_generator
from trec_semid.data.batches import RankingBatch
from trec_semid.data.epochs import EpochBatches
from trec_semid.data.features import Feature, FeaturesConfig, Representation, check_ids
from trec_semid.data.histories import HistoryConfig, Protocol, as_of_test, index_histories, read_events
from trec_semid.data.ranking.batch_maker import BatchMaker
from trec_semid.data.ranking.rows import RankingRows
from trec_semid.data.ranking.source import Asked, Codes, RankingSource, counts_of_labels
from trec_semid.data.schema import SPLITS, Dataset, Split


@final
class RankingData(RankingSource):
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
        *,
        test_then_train: bool = False,
    ) -> None:
        """Read a dataset; with `test_then_train` its test events are trained on, all before them is known."""
        super().__init__(dataset, features, history, representation, codes)
        self._file, self._history = dataset.uri, history
        self._trained: tuple[Split, Protocol] = ("test", "online") if test_then_train else ("train", "frozen")
        self.events = as_of_test(read_events(dataset)) if test_then_train else read_events(dataset)
        self._check_events(dataset.facts.num_items)
        self._indexes = index_histories(self.events, history)
        self._sources = self._sources.gated(self.train_counts()[1], features.id_min_events)

    def rows(self, split: Split, protocol: Protocol) -> RankingRows:
        """Return the rows of a split, with histories under a protocol.

        Raises:
            DataError: the split is empty or a row has no label.
        """
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

    def num_rows(self, split: Split) -> int:
        """See `RankingSource`."""
        return int((self.events.splits == SPLITS.index(split)).sum())

    def mean_lengths(self) -> dict[str, float]:
        """See `RankingSource`."""
        return self.maker_of(self.rows(*self._trained)).mean_lengths()

    def train_counts(self) -> tuple[Array, Array]:
        """See `RankingSource`: (num_users,) and (num_items,)."""
        is_train = (self.events.splits == 0) & ~self.events.is_negative
        users, items = self.events.users[is_train], self.events.items[is_train]
        return np.bincount(users, minlength=self._num_users), np.bincount(items, minlength=self._num_items)

    def label_counts(self, split: Split) -> tuple[Array, Array]:
        """See `RankingSource`: (num_users,) twice."""
        here = self.events.splits == SPLITS.index(split)
        return counts_of_labels(self.events.users[here], self.events.labels[here], self._num_users)

    def training(self, asked: Asked, seed: int) -> EpochBatches[RankingBatch]:
        """See `RankingSource`."""
        return TrainLoader(self.maker_of(self.rows(*self._trained), asked), asked, seed)

    def evaluation(self, split: Split, protocol: Protocol, asked: Asked) -> Iterator[RankingBatch]:
        """See `RankingSource`."""
        maker = self.maker_of(self.rows(split, protocol), asked)
        num_rows = len(maker.rows.labels)
        for start in range(0, num_rows, asked.batch_size):
            rows = np.arange(start, min(start + asked.batch_size, num_rows))
            yield maker.make_part(rows, asked.rank, asked.world_size)

    def _check_events(self, num_items: int) -> None:
        user = next(feature for feature in self.features if feature.role == "user")
        self._num_users, self._num_items = user.num_rows, num_items
        check_ids(user._replace(name="user_row"), self.events.users, self._file)
        check_ids(Feature("item_row", "item", "t_item_id", num_items), self.events.items, self._file)


@final
class TrainLoader(EpochBatches[RankingBatch]):
    """Shuffled batches of rows in memory.

    Every epoch is a permutation seeded by (seed, epoch). Global batch i holds its rows i * batch_size and
    on; ranks take contiguous parts whose sizes differ by one at most, so all ranks make the same number of
    steps and the rows of a step do not depend on the number of ranks.
    """

    def __init__(self, maker: BatchMaker, asked: Asked, seed: int) -> None:
        self._maker, self._asked, self._seed = maker, asked, seed

    @property
    def steps_per_epoch(self) -> int:
        """See `EpochBatches`."""
        return -(-len(self._maker.rows.labels) // self._asked.batch_size)

    def make_epoch(self, first_step: int) -> Iterator[RankingBatch]:
        """See `EpochBatches`."""
        num_rows = len(self._maker.rows.labels)
        order = numpy_generator(self._seed, "epoch", self.epoch).permutation(num_rows)
        size = self._asked.batch_size
        for step in range(first_step, self.steps_per_epoch):
            rows = order[step * size : (step + 1) * size]
            yield self._maker.make_part(rows, self._asked.rank, self._asked.world_size)
