"""Every user's items in order, as rows for next-item training and for evaluation.

Legend: E events, U users, L longest history, W targets of a place.
"""

from typing import Literal, NamedTuple

import numpy as np
from pydantic import PositiveInt

from trec_semid.core.arrays import Array
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.data.histories import Events
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.augment import AugmentConfig
from trec_semid.data.schema import SPLITS, Split


class SequencesConfig(Config):
    """Which events make a user's sequence, and how it is cut into training rows."""

    max_len: PositiveInt = 50
    """Most recent items that a model reads."""
    events: Literal["positives", "all"] = "all"
    """`positives`: events with label 1; `all`: whatever the label. Sampled negatives never count."""
    augment: AugmentConfig | None = None
    """How rows of training are varied from epoch to epoch; they are as they happened where not given."""
    rows: Literal["dense", "last", "sliding"] = "dense"
    """`dense`: every position predicts the next, in one row a user, several where events are more;
    `last`: the last of these rows alone, whatever came before teaches nothing;
    `sliding`: a row for every `window` training events, which the items before them predict at once."""


class EvaluationRows(NamedTuple):
    """One row for every user with an event in the split."""

    users: Array
    """(n,) int64 user rows."""
    histories: Ragged
    """Items before the split's first event, oldest first, at most L."""
    targets: Ragged
    """Items of the split's events."""
    earlier: Ragged
    """All items before the split's first event."""


class Sequences(NamedTuple):
    """Items of every user: training events, then validation events, then test events, each in order."""

    items: Array
    """(E,) int64 item rows, user after user."""
    starts: Array
    """(U + 1,) int64: user u owns items[starts[u] : starts[u + 1]]."""
    counts: Array
    """(U, 3) int64: events of each user in each of `schema.SPLITS`."""

    def training_rows(self, config: SequencesConfig, num_targets: int = 1) -> Ragged:
        """Return windows of at most L + 1 training items; of L + W in sliding rows.

        In a dense row every item but the first is a target of those before it; rows of a user end at the
        last training item and every L items before, so that each item but the first is a target once; of
        `last` rows the last one stays. In a sliding row the last min(W, length - 1) items alone are targets,
        of those before them; rows end at the last training item and every W items before, so that here, too,
        each item but the first is a target once. Users with a single item teach nothing.

        Args:
            config: says how long rows are, and where they end.
            num_targets: W.
        """
        return self._rows(config, num_targets, self.counts[:, 0], self.counts[:, 0] - 1)[0]

    def rows_of_test(self, config: SequencesConfig, num_targets: int = 1) -> tuple[Ragged, Array]:
        """Return windows as `training_rows` does, of all events, in which test items alone are targets.

        Args:
            config: says how long rows are, and where they end.
            num_targets: W.

        Returns:
            The windows, and (n,) how many of each one's last items are targets.
        """
        counts = self.counts.sum(1)
        # A user's very first event has nothing before it that could predict it.
        return self._rows(config, num_targets, counts, np.minimum(self.counts[:, 2], counts - 1))

    def _rows(
        self, config: SequencesConfig, num_targets: int, counts: Array, taught: Array
    ) -> tuple[Ragged, Array]:
        """Return rows of each user's first `counts` (U,) items; the last `taught` (U,) are targets."""
        ahead, stride = (num_targets, num_targets) if config.rows == "sliding" else (1, config.max_len)
        each = -(-np.maximum(taught, 0) // stride)
        if config.rows == "last":
            each = np.minimum(each, 1)
        back = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
        up_to = np.repeat(counts, each) - back * stride
        left = np.minimum(np.repeat(taught, each) - back * stride, stride)
        lengths = np.minimum(up_to, config.max_len + np.minimum(left, ahead))
        rows = Ragged(np.repeat(self.starts[:-1], each) + up_to - lengths, lengths, self.items)
        return rows, np.minimum(left, lengths - 1)

    def evaluation_rows(self, split: Split, max_len: int) -> EvaluationRows:
        """Return the users with an event in the split, what they did before, and what they did then."""
        part = SPLITS.index(split)
        before = self.starts[:-1] + self.counts[:, :part].sum(1)
        users = np.flatnonzero(self.counts[:, part])
        first = np.maximum(self.starts[:-1], before - max_len)
        return EvaluationRows(
            users,
            Ragged(first[users], (before - first)[users], self.items),
            Ragged(before[users], self.counts[users, part], self.items),
            Ragged(self.starts[:-1][users], (before - self.starts[:-1])[users], self.items),
        )


def build_sequences(events: Events, config: SequencesConfig, num_users: int) -> Sequences:
    """Sort events by user, keeping their order.

    Raises:
        DataError: a user's events of a later split come before those of an earlier one, or none are left.
    """
    chosen = ~events.is_negative
    if config.events == "positives":
        chosen &= events.labels > 0.5
    rows = np.flatnonzero(chosen)
    if not len(rows):
        if config.events == "positives":
            remedy = "Set sequences.events = 'all', or prepare the dataset with another [label]"
            raise DataError("no events with label 1 to make sequences of", field="label", remedy=remedy)
        remedy = "Prepare the dataset with events that happened: these are sampled negatives"
        raise DataError("no events to make sequences of", field="behaviour", remedy=remedy)
    order = rows[np.argsort(events.users[rows], kind="stable")]
    users, splits = events.users[order], events.splits[order].astype(np.int64)
    wrong = (np.diff(users) == 0) & (np.diff(splits) < 0)
    if wrong.any():
        row = int(order[1 + int(np.argmax(wrong))])
        problem = "an event of an earlier split comes after one of a later split of the same user"
        raise DataError(
            problem, row=row + 1, field="split", remedy="Split by time or by place in the sequence"
        )
    counts = np.bincount(users * len(SPLITS) + splits, minlength=num_users * len(SPLITS))
    counts = counts.reshape(num_users, len(SPLITS))
    starts = np.concatenate(([0], np.cumsum(counts.sum(1))))
    return Sequences(events.items[order], starts, counts)
