"""What a teacher would list after every training event that is read last.

Legend: E events of all sequences, n of them that some place reads last, P places, T items of a list.
"""

from typing import NamedTuple

import numpy as np

from trec_semid.core.arrays import Array


class SoftTargets(NamedTuple):
    """Lists by the event that is read last, which a place of a training row always has."""

    rows: Array
    """(E,) int32: which list is of an event; -1 of one that no place reads last."""
    items: Array
    """(n, T) int32 item rows, best first; -1 where there is none."""
    shares: Array
    """(n, T) float16: what each is worth, 1 in sum; 0 where there is none."""

    def of(self, events: Array) -> tuple[Array, Array]:
        """Return (P, T) int64 item rows and float32 shares, 1 in sum, of the lists after (P,) events."""
        rows = self.rows[events]
        assert (rows >= 0).all(), "the teacher is asked after every event that is read last"
        shares = self.shares[rows].astype(np.float32)
        total = shares.sum(1, keepdims=True)
        # Rounded to half precision they are 1 in sum to three digits.
        return self.items[rows].astype(np.int64), shares / np.where(total > 0, total, 1.0)
