"""Which residuals take the places of codewords that nothing is near to: the same on any number of ranks.

Legend: n rows of this rank, K codewords of a level, W ranks, d width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trec_semid.tokenizers.inputs.shards import rows_of_all_ranks

_LAST = 2**62
"""Key of no row: it comes after all others."""


class Draw(NamedTuple):
    """Distinct items of the global batch, in a random order that depends on seed, step and items alone."""

    own: Tensor
    """(K,) int64: this rank's first rows in that order."""
    order: Tensor
    """(K,) int64: which of all ranks' W * K own rows come first."""
    num_drawn: Tensor
    """() int64: how many of `order` are rows; what follows means nothing."""

    def of(self, values: Tensor) -> Tensor:
        """Return (K, d): the drawn rows of the (n, d) values of all ranks; all ranks call it."""
        # A rank without rows takes part with zeros, which are not drawn.
        own = values[self.own] if len(values) else values.new_zeros(len(self.own), *values.shape[1:])
        return rows_of_all_ranks(own)[self.order]


def draw_rows(items: Tensor, present: Tensor, size: int, seed: Tensor) -> Draw:
    """Draw so many distinct items among all ranks' rows; all ranks call it.

    Every item has a key, mixed from its row number and the seed; the lowest keys are drawn. So the draw does
    not depend on which rank has which row, nor on how often.

    Args:
        items: (n,) int64 item rows.
        present: (n,) bool; others are not drawn.
        size: K.
        seed: () int64, another one every step.
    """
    keys = torch.where(present, mixed(items, seed), _LAST)
    own_keys, own = _first_distinct(keys, size)
    # Equal keys are the same item on another rank: one of them stays.
    all_keys, order = _first_distinct(rows_of_all_ranks(own_keys), size)
    return Draw(own, order, (all_keys < _LAST).sum())


def mixed(numbers: Tensor, seed: Tensor) -> Tensor:
    """Return (n,) int64 keys in 0 .. 2^62 - 1 of (n,) int64 numbers, as good as random for each seed ().

    Rounds of multiplying and of xor with the upper half, as in splitmix64 (Steele et al., 2014).
    """
    state = numbers * 2654435769 + seed
    for factor in (0x3F58476D1CE4E5B9, 0x14D049BB133111EB):
        state = (state ^ (state >> 30)) * factor
    return (state ^ (state >> 31)) & (_LAST - 1)


def _first_distinct(keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the (size,) lowest distinct keys in order, filled up with `_LAST`, and where they stand."""
    ordered, places = keys.sort(stable=True)
    repeats = torch.zeros_like(ordered, dtype=torch.bool)
    repeats[1:] = ordered[1:] == ordered[:-1]
    ordered, again = ordered.masked_fill(repeats, _LAST).sort(stable=True)
    places = places[again]
    missing = max(size - len(keys), 0)
    return (
        torch.nn.functional.pad(ordered[:size], (0, missing), value=_LAST),
        torch.nn.functional.pad(places[:size], (0, missing)),
    )
