"""Ranking rows that are read from files as they are needed, and never lie in memory all at once.

Each rank has a stretch of the rows, of equal length to a row, and of the row groups there. In every epoch it
goes through these in an order drawn anew, a window of them at a time, whose rows are shuffled together. A
global batch has a fixed number of rows of each rank, so all ranks know from the sizes alone how many steps
there are and how many rows a step has. Which rows a step has therefore depends on the number of ranks,
unlike those of `RankingData`; where one rank's window holds all rows, the batches are the same. A run that
goes on with another number of ranks inside an epoch goes on at its step: of this epoch some rows come twice
and some not at all.

Memory: the rows of up to three windows (one in use, one read ahead, one as it is read), 8 bytes a user and
an item, and the semantic IDs of all items.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

import numpy as np
from pydantic import PositiveInt

from trec_semid.core.arrays import Array
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.core.seeds import numpy_generator
from trec_semid.data.batches import RankingBatch
from trec_semid.data.epochs import EpochBatches
from trec_semid.data.features import Feature, FeaturesConfig, Representation, check_ids
from trec_semid.data.histories import HistoryConfig, Protocol
from trec_semid.data.ranking.row_files import RowFiles, RowGroup
from trec_semid.data.ranking.rows import RankingRows, joined, no_rows
from trec_semid.data.ranking.source import Asked, Codes, RankingSource, counts_of_labels
from trec_semid.data.schema import Dataset, Split
from trec_semid.runtime.prefetch import prefetch


class StreamConfig(Config):
    """Rows are read from the dataset's row files as training goes on."""

    window: PositiveInt = 8
    """Row groups of a rank whose rows are shuffled together."""


class _Window(NamedTuple):
    """Rows that lie in memory, and the order in which they are taken."""

    rows: RankingRows
    order: Array
    """(n,) rows of them."""


@final
class StreamedData(RankingSource):
    """A dataset's row files as ranking rows, features and histories; every id is checked as it is read."""

    def __init__(
        self,
        dataset: Dataset,
        features: FeaturesConfig,
        history: HistoryConfig,
        representation: Representation,
        codes: Codes | None,
        *,
        stream: StreamConfig,
    ) -> None:
        """Look which rows there are; `history` is that of the rows, or a shorter one.

        Raises:
            ConfigError: an unknown side field.
            DataError: the dataset has no rows or other histories, or an id is outside its table.
        """
        super().__init__(dataset, features, history, representation, codes)
        self._dataset, self._window, self._has_history = dataset, stream.window, history.max_len > 0
        self._files = RowFiles(dataset, history)
        self._sources = self._sources.gated(self.train_counts()[1], features.id_min_events)

    def num_rows(self, split: Split) -> int:
        """See `RankingSource`."""
        return self._files.num_rows(split)

    def mean_lengths(self) -> dict[str, float]:
        """See `RankingSource`; those of the first row group, which is a sample by lot."""
        return self.maker_of(self._read(self._groups("train")[0], "frozen")).mean_lengths()

    def train_counts(self) -> tuple[Array, Array]:
        """See `RankingSource`: (num_users,) and (num_items,)."""
        return self._files.train_counts()

    def label_counts(self, split: Split) -> tuple[Array, Array]:
        """See `RankingSource`: (num_users,) twice."""
        num_users = self._dataset.facts.num_users
        zeros, ones = np.zeros(num_users, np.int64), np.zeros(num_users, np.int64)
        for users, labels in self._files.labels(split):
            of_group = counts_of_labels(users, labels, num_users)
            zeros += of_group[0]
            ones += of_group[1]
        return zeros, ones

    def training(self, asked: Asked, seed: int) -> EpochBatches[RankingBatch]:
        """See `RankingSource`."""
        shares = shares_of(self._groups("train"), asked)
        return StreamedBatches(self, shares, asked, seed)

    def evaluation(self, split: Split, protocol: Protocol, asked: Asked) -> Iterator[RankingBatch]:
        """See `RankingSource`."""
        shares = shares_of(self._groups(split), asked)
        read = (self._read(group, protocol) for group in shares.groups)
        windows = (_Window(rows, np.arange(len(rows.labels))) for rows in read)
        return self.batches_of(prefetch(windows, depth=1), shares, asked, first_step=0)

    def windows(
        self, groups: Sequence[RowGroup], seed: int, keys: Sequence[str | int], skipped: int
    ) -> Iterator[_Window]:
        """Yield the rows of training windows, shuffled.

        Args:
            groups: in the order in which they are read.
            seed: of the run.
            keys: of the draws beside it; each window but the first adds its number.
            skipped: rows that are left out at the start.
        """
        for number, first in enumerate(range(0, len(groups), self._window)):
            of_window = groups[first : first + self._window]
            size = sum(group.num_rows for group in of_window)
            if skipped < size:
                rows = joined([self._read(group, "frozen") for group in of_window])
                lot = numpy_generator(seed, *keys, *([number] if number else [])).permutation(size)
                # Dealt in the order of events, so that it does not matter how rows lie in files.
                order = np.argsort(rows.numbers_of(np.arange(size)))[lot]
                yield _Window(rows, order[skipped:])
            skipped = max(0, skipped - size)

    def batches_of(
        self, windows: Iterator[_Window], shares: "Shares", asked: Asked, *, first_step: int
    ) -> Iterator[RankingBatch]:
        """Yield this rank's batches from the rows of windows, one window after another.

        Args:
            windows: from the first row of the first step on.
            shares: how many rows a rank has in a step.
            asked: the batches.
            first_step: of the batches.
        """
        # The window in use: what makes batches of it, and the order in which its rows are taken.
        maker, order = self.maker_of(no_rows(with_histories=self._has_history), asked), np.zeros(0, np.int64)
        at = 0
        for step in range(first_step, shares.num_steps):
            of_ranks = shares.rows_of(step)
            size = int(of_ranks[asked.rank])
            padding = int(of_ranks.max()) - size
            chosen = order[at : at + size]
            at += len(chosen)
            if len(chosen) == size:
                yield maker.make(chosen, int(of_ranks.sum()), padding)
                continue
            # What is left of one window, and the first rows of those after it.
            parts = [maker.rows.take(chosen)]
            missing = size - len(chosen)
            while missing:
                rows, order = next(windows)
                maker, at = self.maker_of(rows, asked), min(missing, len(order))
                parts.append(rows.take(order[:at]))
                missing -= at
            together = self.maker_of(joined(parts), asked)
            yield together.make(np.arange(size), int(of_ranks.sum()), padding)

    def _groups(self, split: Split) -> list[RowGroup]:
        groups = self._files.groups(split)
        if not groups:
            remedy = "Prepare the dataset with another split rule"
            raise DataError(f"no {split} rows", file=self._dataset.uri, field="split", remedy=remedy)
        return groups

    def _read(self, group: RowGroup, protocol: Protocol) -> RankingRows:
        rows, facts = self._files.read(group, protocol), self._dataset.facts
        check_ids(Feature("user_row", "user", "t_user_id", facts.num_users), rows.users, group.file)
        item = Feature("item_row", "item", "t_item_id", facts.num_items)
        check_ids(item, rows.items, group.file)
        if rows.histories is not None:
            check_ids(item._replace(name="history"), rows.histories.values, group.file)
        return rows


class Shares(NamedTuple):
    """What ranks have of the rows. W ranks."""

    groups: list[RowGroup]
    """Of this rank."""
    num_rows: Array
    """(W,) rows of each rank."""
    sizes: Array
    """(W,) rows of each rank in a step that has all."""

    @property
    def num_steps(self) -> int:
        """Until no rank has rows left."""
        return int((-(-self.num_rows // self.sizes)).max())

    def rows_of(self, step: int) -> Array:
        """Return (W,) how many rows each rank has in a step."""
        return np.clip(self.num_rows - step * self.sizes, 0, self.sizes)


def shares_of(groups: Sequence[RowGroup], asked: Asked) -> Shares:
    """Deal rows to ranks in stretches of equal length, to a row; two ranks read a group that is cut.

    Raises:
        DataError: a batch has fewer rows than there are ranks.
    """
    world_size = asked.world_size
    if asked.batch_size < world_size:
        problem = f"a batch of {asked.batch_size} rows for {world_size} ranks, each of which streams its own"
        raise DataError(problem, field="train.batch_size", remedy=f"Set it to {world_size} or more")
    ends = np.cumsum([group.num_rows for group in groups])
    num_rows, sizes = (_parts(whole, world_size) for whole in (int(ends[-1]), asked.batch_size))
    first = int(num_rows[: asked.rank].sum())
    last = first + int(num_rows[asked.rank])
    own: list[RowGroup] = []
    for group, end in zip(groups, ends.tolist(), strict=True):
        start = end - group.num_rows
        begins, ends_at = max(first, start), min(last, end)
        if begins < ends_at:
            own.append(group._replace(num_rows=ends_at - begins, first=begins - start))
    return Shares(own, num_rows, sizes)


def _parts(whole: int, world_size: int) -> Array:
    """Return (W,) sizes of the parts of so many rows that ranks have; earlier ranks have one more."""
    return whole // world_size + (np.arange(world_size) < whole % world_size)


@final
class StreamedBatches(EpochBatches[RankingBatch]):
    """Shuffled training batches of a rank's row groups."""

    def __init__(self, data: StreamedData, shares: Shares, asked: Asked, seed: int) -> None:
        self._data, self._shares, self._asked, self._seed = data, shares, asked, seed

    @property
    def steps_per_epoch(self) -> int:
        """See `EpochBatches`."""
        return self._shares.num_steps

    def make_epoch(self, first_step: int) -> Iterator[RankingBatch]:
        """See `EpochBatches`."""
        shares, rank = self._shares, self._asked.rank
        # The first rank's keys are those of the loader of rows in memory.
        keys = ["epoch", self.epoch, *(["rank", rank] if rank else [])]
        lot = numpy_generator(self._seed, *keys, "row groups").permutation(len(shares.groups))
        groups = [shares.groups[at] for at in lot]
        skipped = min(first_step * int(shares.sizes[rank]), int(shares.num_rows[rank]))
        windows = self._data.windows(groups, self._seed, keys, skipped)
        return self._data.batches_of(prefetch(windows, depth=1), shares, self._asked, first_step=first_step)
