"""What a teacher would list after every training event.

Legend: E events of all sequences, P places, T items of a list.
"""

from typing import NamedTuple

import numpy as np

from trec_semid.core.arrays import Array


class SoftTargets(NamedTuple):
    """Lists by the event that is read last, which a place of a training row always has."""

    items: Array
    """(E, T) int32 item rows, best first; -1 where there is none."""
    shares: Array
    """(E, T) float16: what each is worth, 1 in sum; 0 where there is none."""

    def of(self, events: Array) -> tuple[Array, Array]:
        """Return (P, T) int64 item rows and float32 shares, 1 in sum, of the lists after (P,) events."""
        shares = self.shares[events].astype(np.float32)
        total = shares.sum(1, keepdims=True)
        # Rounded to half precision they are 1 in sum to three digits.
        return self.items[events].astype(np.int64), shares / np.where(total > 0, total, 1.0)
