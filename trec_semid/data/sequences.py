"""Every user's items in order, as rows for next-item training and for evaluation.

Legend: E events, U users, L longest history.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import PositiveInt

from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.data.histories import Events
from trec_semid.data.ragged import Ragged
from trec_semid.data.schema import SPLITS, Split

Array = np.ndarray[Any, np.dtype[Any]]


class SequencesConfig(Config):
    """Which events make a user's sequence, and how it is cut into training rows."""

    max_len: PositiveInt = 50
    """Most recent items that a model reads."""
    events: Literal["positives", "all"] = "all"
    """`positives`: events with label 1; `all`: whatever the label. Sampled negatives never count."""
    rows: Literal["dense", "sliding"] = "dense"
    """`dense`: a row a user, every position predicts the next; `sliding`: a row for every training event,
    which the items before it predict."""


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

    def training_rows(self, config: SequencesConfig) -> Ragged:
        """Return windows of at most L + 1 training items.

        In a dense row every item but the first is a target of those before it. In a sliding row the last
        item alone is. Rows of a single item teach nothing and are left out.
        """
        counts, starts = self.counts[:, 0], self.starts[:-1]
        if config.rows == "dense":
            ends, lengths = starts + counts, np.minimum(counts, config.max_len + 1)
        else:
            each = np.maximum(counts - 1, 0)
            place = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
            ends = np.repeat(starts, each) + place + 2
            lengths = np.minimum(place + 2, config.max_len + 1)
        kept = lengths > 1
        return Ragged((ends - lengths)[kept], lengths[kept], self.items)

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
        remedy = "Set sequences.events = 'all', or change [label]"
        raise DataError("no events to make sequences of", field="events", remedy=remedy)
    order = rows[np.argsort(events.users[rows], kind="stable")]
    users, splits = events.users[order], events.splits[order].astype(np.int64)
    wrong = (np.diff(users) == 0) & (np.diff(splits) < 0)
    if wrong.any():
        row = int(order[1 + int(np.argmax(wrong))])
        problem = "an event of an earlier split comes after one of a later split of the same user"
        raise DataError(problem, row=row, field="split", remedy="Split by time or by place in the sequence")
    counts = np.bincount(users * len(SPLITS) + splits, minlength=num_users * len(SPLITS))
    counts = counts.reshape(num_users, len(SPLITS))
    starts = np.concatenate(([0], np.cumsum(counts.sum(1))))
    return Sequences(events.items[order], starts, counts)
