"""Training rows that are cropped and shuffled anew in every epoch; what a place predicts is what came next.

Legend: B rows of a global batch, n its own rows, L longest row.
"""

from typing import NamedTuple

import numpy as np
from pydantic import Field

from trec_semid.core.arrays import Array, Flags, Ints
from trec_semid.core.config import Config

_FEWEST_ITEMS = 2
"""Of a row: one that is read and one that is a target."""


class AugmentConfig(Config):
    """How rows of training are varied.

    Source: Contrastive Learning for Sequential Recommendation (CL4SRec), 2022, crop and reorder; as here, for
    rows that are learnt from and not for a contrast between two of them.
    """

    crop_prob: float = Field(default=0.0, ge=0, le=1)
    """Of a row to be cut to a stretch of it in an epoch."""
    crop_share: float = Field(default=0.6, gt=0, lt=1)
    """Of a row's items in such a stretch."""
    shuffle_prob: float = Field(default=0.0, ge=0, le=1)
    """Of a row to be read with a stretch of its items in another order in an epoch. Inside of the stretch
    nothing is predicted: what was read there may be the answer."""
    shuffle_share: float = Field(default=0.3, gt=0, lt=1)
    """Of what is read of a row, in such a stretch."""


class Changes(NamedTuple):
    """What happens to rows of a step."""

    first: Ints
    """(B,) the first item that stays."""
    lengths: Ints
    """(B,) items that stay."""
    start: Ints
    """(B,) where the shuffled stretch begins among those."""
    size: Ints
    """(B,) its items; 0 where there is none."""
    keys: Array
    """(B, L) in [0, 1): items of a stretch stand in their order."""

    def of(self, rows: Array) -> "Changes":
        """Return the changes of (n,) of the rows."""
        return Changes(*(part[rows] for part in self))

    @property
    def num_silent(self) -> Ints:
        """(B,) places that read part of a stretch alone, and predict nothing where every place predicts."""
        return np.maximum(self.size - 1, 0)

    def has_read_all(self, places: Ints) -> Flags:
        """Return (B, P) bool of (P,) places of each row: those that have not read part of a stretch alone."""
        start = self.start[:, None]
        return (places < start) | (places >= start + self.num_silent[:, None])

    def order(self) -> Array:
        """Return (sum of lengths,) where each item that is read comes from, one row after another."""
        row = np.repeat(np.arange(len(self.lengths)), self.lengths)
        place = np.arange(len(row)) - np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        start, size = self.start[row], self.size[row]
        inside = (place >= start) & (place < start + size)
        within = np.where(
            inside, start + size * self.keys[row, np.minimum(place, self.keys.shape[1] - 1)], place
        )
        return np.lexsort((within, row))


def draw_changes(
    config: AugmentConfig, lengths: Ints, num_ahead: int, generator: np.random.Generator
) -> Changes:
    """Return what happens to the rows of a global batch, of (B,) lengths of at least two items.

    Args:
        config: of the changes.
        lengths: items of the rows.
        num_ahead: last items of a row that are targets alone, at most; one where every place predicts.
        generator: of the step, on all ranks alike.
    """

    def share_of(sizes: Ints, share: float, prob: float, otherwise: Ints) -> Ints:
        """Return (B,) a share of the sizes, with a probability, or else the other numbers."""
        return np.where(
            generator.random(len(sizes)) < prob, np.floor(share * sizes).astype(np.int64), otherwise
        )

    stay = np.maximum(share_of(lengths, config.crop_share, config.crop_prob, lengths), _FEWEST_ITEMS)
    first = np.floor(generator.random(len(lengths)) * (lengths - stay + 1)).astype(np.int64)
    read = stay - np.minimum(num_ahead, stay - 1)
    size = share_of(read, config.shuffle_share, config.shuffle_prob, np.zeros_like(read))
    start = np.floor(generator.random(len(lengths)) * (read - size + 1)).astype(np.int64)
    return Changes(first, stay, start, size, generator.random((len(lengths), int(read.max(initial=1)))))
