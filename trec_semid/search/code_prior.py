"""What is known of items and codes before any user, which heads that say codes apart leave out.

Independent heads say p_r(k | u) of each position. The sum of an item's log p_r(c_r | u) takes codes to be
independent of each other: it favours common codes, whether or not a user tells of them. By naive Bayes, where
each code tells of the user whatever the others are,

    score(u, i) = sum_r log( p_r(c_r(i) | u) / p_r(c_r(i)) ) + share * log p(i),

p(i) the item's share of training events, one more counted for each item, and p_r(k) the sum over items whose
r-th code is k. With share = 1 that is log p(i | u) up to a constant of the user. Many codes repeat each other
and count as evidence several times: a larger share makes up for it. What is added to the sum is an item's
gain.

Legend: N items, R positions, M_r nodes of level r of the trie.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from trec_semid.core.config import Config
from trec_semid.layers.tuple_trie import TupleTrie


class CodePriorConfig(Config):
    """What independent heads are corrected by."""

    kind: Literal["bayes", "none"] = "bayes"
    """Naive Bayes, or the sum of log-probabilities as it is."""
    item_share: float = Field(default=1.0, ge=0, le=1e3)
    """How much log p(i) counts: 1 as if codes told of a user independently; the more codes, the more."""


class CodePrior(NamedTuple):
    """What gains are made of."""

    counts: Tensor
    """(N,) training events of each item."""
    item_share: float
    """Of log p(i)."""

    def of_items(self, codes: Tensor) -> Tensor:
        """Return (N,) float32: the gain of every item.

        Args:
            codes: (N, R) of all items.
        """
        shares = self._shares
        gains = self.item_share * shares.log()
        for of_position in codes.long().unbind(1):
            gains -= _sums_by(of_position, shares).log()[of_position]
        return gains.float()

    def of_nodes(self, trie: TupleTrie) -> tuple[Tensor, ...]:
        """Return R + 1 of (M_r,) float32: what a node gains on its parent, and at last an item on its tuple.

        share * log( p(node) / p(parent) ) - log p_r(the node's code), p(node) that of all items under it.
        From the root down to an item these add up to the item's gain, and down to a node to what the node
        would gain as an item.

        Args:
            trie: of all items' codes; the last part goes by place in `trie.items`.
        """
        of_items = self._shares.cpu()[trie.items.cpu()]
        # What all items before a place have: the items of a node are a stretch of places.
        before = torch.cat([of_items.new_zeros(1), of_items.cumsum(0)])
        of_parents, gains = before[-1:], []
        for level, starts in enumerate(trie.starts):
            bounds, codes = before[starts.cpu().long()], trie.codes[level].cpu().long()
            shares = bounds.diff()
            of_nodes = (shares / _spread(trie, level, of_parents)).log()
            gains.append(self.item_share * of_nodes - _sums_by(codes, shares)[codes].log())
            of_parents = shares
        gains.append(self.item_share * (of_items / _spread(trie, trie.num_positions, of_parents)).log())
        return tuple(gain.float().to(trie.device) for gain in gains)

    @property
    def _shares(self) -> Tensor:
        """Return (N,) float64 p(i): with one event more each, no item is impossible."""
        counts = self.counts.double() + 1.0
        return counts / counts.sum()


def _sums_by(codes: Tensor, shares: Tensor) -> Tensor:
    """Return (K,) sums of shares (n,) by code (n,)."""
    return shares.new_zeros(int(codes.max()) + 1).index_add(0, codes, shares)


def _spread(trie: TupleTrie, level: int, of_parents: Tensor) -> Tensor:
    """Return (M_level,): what stands at each node's parent."""
    return of_parents.repeat_interleave(trie.offsets[level].cpu().diff().long())
