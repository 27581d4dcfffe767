"""What a retriever is called with: a batch's listed items with features and content, on the device.

Legend: U listed items.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trec_semid.data.batches import Jagged
from trec_semid.data.retrieval.batches import ItemFeatures, SequenceBatch
from trec_semid.embeddings.collection import keyed_jagged
from trec_semid.layers.soft_index import GumbelNoise
from trec_semid.models.item_tokens import Listed
from trec_semid.models.live_codes import LiveContents
from trec_semid.runtime.ranks import Ranks
from trec_semid.tokenizers.inputs.contents import Standardised

Lookup = Callable[[Tensor], Standardised]
"""Content of (U,) item rows; all ranks ask together."""


class LiveItems(NamedTuple):
    """Says which codes are chosen afresh, and how."""

    contents: Lookup
    noise: GumbelNoise | None


@final
class ItemFeed:
    """Makes `Listed` of batches; where every batch lists the same items, they are built once and stored."""

    def __init__(self, item_features: ItemFeatures, contents: Lookup | None, ranks: Ranks) -> None:
        self._features, self._contents, self._ranks = item_features, contents, ranks
        self._stored: Listed | None = None

    def listed(self, batch: SequenceBatch, live: LiveItems | None = None) -> Listed:
        """Return the items of a batch that lies on this rank's device."""
        listed = self._same(batch) if batch.features is None else self._some(batch.items, batch.features)
        return listed if live is None else listed._replace(live=self._live(batch, listed.rows, live))

    def chunk(self, first: int, last: int) -> Listed:
        """Return the items `first` to `last - 1`."""
        rows = torch.arange(first, last)
        return self._make(rows.to(self._ranks.device), self._features.of(rows.numpy()))

    def _same(self, batch: SequenceBatch) -> Listed:
        if self._stored is None:
            self._stored = self._make(batch.items, self._features.of(batch.items.numpy(force=True)))
        return self._stored

    def _some(self, items: Tensor, features: Jagged) -> Listed:
        """Fill up to the longest list of any rank: tables placed by rows want equally many bags on each."""
        missing = longest_of_ranks(len(items), self._ranks) - len(items)
        if missing:
            lengths = pad(features.lengths.view(len(features.keys), len(items)), (0, missing)).flatten()
            features, items = features._replace(lengths=lengths), pad(items, (0, missing))
        return self._make(items, features)

    def _make(self, rows: Tensor, features: Jagged) -> Listed:
        features = features.to(self._ranks.device)
        bags: KeyedJaggedTensor | None = keyed_jagged(*features) if features.keys else None
        return Listed(rows, bags, self._contents(rows) if self._contents else None)

    def _live(self, batch: SequenceBatch, rows: Tensor, live: LiveItems) -> LiveContents:
        chosen = rows if batch.named is None else rows[batch.named]
        # All of them are anchored: the loss weighs those that are no target by 0 (`retrieval_model._shown`).
        return LiveContents(live.contents(chosen), batch.named, len(chosen), live.noise)


def longest_of_ranks(length: int, ranks: Ranks) -> int:
    """Return the largest of all ranks' lengths; all ranks call it."""
    if ranks.world_size == 1:
        return length
    longest = torch.tensor(length)  # between hosts: on a device it would wait for all that was asked before
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    return int(longest)


def look_up(tables: nn.Module) -> Lookup:
    """Return what reads content tables."""

    def read(rows: Tensor) -> Standardised:
        """Return content of item rows."""
        standardised: Any = tables(rows)
        return Standardised(*standardised)

    return read
