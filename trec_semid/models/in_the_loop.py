"""A ranker with its tokenizer in the loop: content to codes to loss, and the gradient all the way back.

Legend: B rows, U distinct items of the batch, R positions, K codes, D table width, F features.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trec_semid.data.features import Feature
from trec_semid.data.item_rows import ItemRows
from trec_semid.embeddings.collection import PooledTables
from trec_semid.layers.soft_index import GumbelNoise
from trec_semid.models.live_codes import FinetuneConfig, LiveCodes, LiveContents
from trec_semid.models.loop_prefixes import LoopPrefixes
from trec_semid.models.ranker import DenseRanker
from trec_semid.tokenizers.inputs.contents import Standardised

CODE_ROLES = ("item_code", "history_code")


@final
class RankerInTheLoop(nn.Module):
    """Tables, tokenizer and dense part together. Runs unsharded; sharding is applied from outside.

    Codes of a batch's items are chosen from their content once an item, and looked up in the fetched code
    tables through the soft index (MMQ eq 15-18); without content, and for older history, the code is the
    map's. With the map's codes it is the plain ranker, number for number.
    """

    def __init__(
        self,
        sparse: PooledTables,
        live: LiveCodes,
        dense: DenseRanker,
        features: Sequence[Feature],
        prefixes: LoopPrefixes | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            sparse: tables of all features that are no codes.
            live: codes with the tokenizer that chooses them.
            dense: over all features, codes included.
            features: all of them, in the order the dense part reads.
            prefixes: where features read prefix tables.
        """
        super().__init__()
        self.sparse, self.live, self.dense = sparse, live, dense
        self.pooling = sparse.pooling
        self.prefixes = prefixes
        self.has_history = any(feature.role == "history_code" for feature in features)
        # The order in which `forward` puts vectors side by side: tables, item codes, history codes.
        # The dense part reads them in the order of `features`.
        order = [
            *(f for f in features if f.role not in CODE_ROLES),
            *(f for f in features if f.role == "item_code"),
        ]
        order += [f for f in features if f.role == "history_code"]
        places = {feature.name: place for place, feature in enumerate(order)}
        self._places = [places[feature.name] for feature in features]

    def forward(
        self,
        features: KeyedJaggedTensor,
        items: ItemRows,
        contents: Standardised | None = None,
        noise: GumbelNoise | None = None,
    ) -> "Scored":
        """Return logits, the codes of the batch's items, and how well they rebuild their content.

        Args:
            features: of all features that are neither codes nor prefixes.
            items: targets and histories.
            contents: of `items.rows`; None looks all codes up in the map.
            noise: on the choice.
        """
        # Only targets are anchored, so only they are rebuilt.
        live = None if contents is None else LiveContents(contents, None, items.num_targets, noise)
        chosen = self.live(items.rows, live)
        vectors = chosen.rows().flatten(1)
        if self.prefixes:
            features = self.prefixes.add(features, items, chosen.codes, self.live.codes[items.older])
        parts = [self.sparse(features), vectors[items.targets]]
        if self.has_history:
            parts.append(self._pool(chosen.tables, vectors, items))
        blocks = torch.cat(parts, dim=1).unflatten(1, (len(self._places), -1))
        return Scored(self.dense(blocks[:, self._places].flatten(1)), chosen.codes, chosen.errors)

    def _pool(self, tables: Tensor, vectors: Tensor, items: ItemRows) -> Tensor:
        """Return (B, R * D): history entries added up, or their mean."""
        ends = items.recent_lengths.cumsum(0)
        pooled = functional.embedding_bag(items.recent, vectors, ends - items.recent_lengths, mode="sum")
        if len(items.older):
            pooled = pooled + self._pool_older(tables, items)
        if self.pooling == "sum":
            return pooled
        # Divided once, by both: two means would weigh recent and older entries unequally.
        return pooled / (items.recent_lengths + items.older_lengths).clamp(min=1).unsqueeze(1)

    def _pool_older(self, tables: Tensor, items: ItemRows) -> Tensor:
        num_positions, num_rows, _ = tables.shape
        # All tables as one of R * (K + 1) rows: a single call pools every position, position after position.
        shift = torch.arange(num_positions, device=tables.device).unsqueeze(1)
        chosen = self.live.codes[items.older].long().T + shift * num_rows
        starts = (items.older_lengths.cumsum(0) - items.older_lengths) + shift * len(items.older)
        bags = functional.embedding_bag(chosen.flatten(), tables.flatten(0, 1), starts.flatten(), mode="sum")
        return bags.unflatten(0, (num_positions, -1)).transpose(0, 1).flatten(1)


class Scored(NamedTuple):
    """What the ranker says of B rows and their U distinct items."""

    logits: Tensor
    """(B,)."""
    codes: Tensor
    """(U, R) int64; K where missing."""
    errors: dict[str, Tensor]
    """Name to (distinct targets,): squared errors of their rebuilt content; empty without content."""


class LoopOutput(NamedTuple):
    """What one rank says of its part of a batch."""

    loss: Tensor
    """() this rank's part of the loss, times the number of ranks: its mean over ranks is the global mean."""
    logits: Tensor
    """(B,)."""
    codes: Tensor
    """(U, R)."""
    agreement: Tensor
    """() share of these codes that are the map's."""


@final
class RankerInTheLoopWithLoss(nn.Module):
    """L = BCE + alpha' L_recon + beta' L_aux (MMQ eq 19), all means over the rows of the global batch.

    The anchors L_recon and L_aux are those of the rows' target items, so that an item weighs as much as it
    is shown, and shares of ranks add up to the global batch.
    """

    def __init__(self, ranker: RankerInTheLoop, config: FinetuneConfig, *, world_size: int) -> None:
        super().__init__()
        self.ranker, self.world_size = ranker, world_size
        self.anchor_weights = {
            "reconstruction": config.reconstruction_weight,
            "auxiliary": config.auxiliary_weight,
        }

    def forward(
        self,
        features: KeyedJaggedTensor,
        labels: Tensor,
        weights: Tensor,
        global_size: int,
        items: ItemRows,
        contents: Standardised | None = None,
        *,
        noise: GumbelNoise | None = None,
    ) -> LoopOutput:
        """Return the loss of (B,) labels and weights (0 for padding rows)."""
        scored = self.ranker(features, items, contents, noise)
        share = self.world_size / global_size
        total = functional.binary_cross_entropy_with_logits(
            scored.logits, labels, weight=weights, reduction="sum"
        )
        loss = total * share
        for name, errors in scored.errors.items():
            # Distinct targets come first among the items, so the same numbers point at errors.
            loss = loss + self.anchor_weights[name] * share * (errors[items.targets] * weights).sum()
        agreement = (self.ranker.live.codes[items.rows] == scored.codes).float().mean()
        return LoopOutput(loss, scored.logits.detach(), scored.codes, agreement)
