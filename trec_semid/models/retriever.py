"""A retriever: items as tokens, a sequence model over them, heads that score what comes next, and the loss.

Legend: B rows, L longest history, U listed items, F tokens of an item, P places that predict, W targets a
place, R positions, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, final

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from trec_semid.core.config import Config
from trec_semid.data.retrieval.batches import Places
from trec_semid.data.retrieval.dataset import Negatives
from trec_semid.layers.full_softmax import Drawn, full_softmax_loss, sampled_softmax_loss
from trec_semid.models.heads import CodeHeads
from trec_semid.models.item_tokens import ItemTokens, Listed, Tokens


class SequenceModel(nn.Module, ABC):
    """Reads histories."""

    @abstractmethod
    def forward(self, histories: Tensor) -> Tensor:
        """Return states (B, L, D); those at or after a row's length mean nothing.

        Args:
            histories: (B, L, F, D) what it reads of the items, oldest first.
        """

    def look_up(self, tokens: Tokens, rows: Tensor) -> Tensor:
        """Return (n, F, D): what it reads of some listed items; here all their tokens."""
        return tokens.at(rows)


class LossConfig(Config):
    """What a retriever learns, and what it scores by."""

    item_weight: NonNegativeFloat = 1.0
    """Of the cross-entropy over items."""
    negatives: Negatives = "all"
    """Items that it takes for wrong answers: all, or those `seen` in training, whatever the label. One never
    seen is then not learnt to be wrong, and is found by its content and codes."""
    code_weight: NonNegativeFloat = 0.0
    """Of the cross-entropy over codes, a mean over positions; without it codes are read, not predicted."""
    item_temperature: PositiveFloat = 1.0
    """Divides the scores of items."""
    item_similarity_is_cosine: bool = False
    """Whether states and items are brought to unit length before they are multiplied."""
    code_temperature: PositiveFloat = 0.1
    """Divides cosines of codes."""
    code_share: NonNegativeFloat = 0.1
    """score = item score + code_share * sum of log-probabilities of the item's codes. The sum of R of these
    spreads wide: at 1 it outweighs a sharp item score."""


class RetrieverOutput(NamedTuple):
    """What one rank says of its part of a batch."""

    loss: Tensor
    """() this rank's part of the loss, times the number of ranks: its mean over ranks is the global mean."""
    agreement: Tensor
    """() share of the codes just chosen that are the map's; 1 where none are chosen."""


class RetrievalModel(nn.Module, ABC):
    """Items, and what predicts the next of them. Runs unsharded; sharding is applied from outside."""

    items: ItemTokens
    config: LossConfig

    @abstractmethod
    def forward(self, listed: Listed, places: Places) -> tuple[dict[str, Tensor], Tokens]:
        """Return the losses of each place by name (`items`, `codes`), (P,) each, and the items' tokens."""


def read_by_length(
    look_up: Callable[[Tensor], Tensor], places: Places, read: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return (B, L', D): what is read of histories, each with those of about its length.

    Items are looked up once for all: the gradient of a look-up is as large as the catalogue.

    Args:
        look_up: gives what is read (n, F, D) of some listed items.
        places: histories.
        read: given tokens (b, l, F, D) and row numbers (b,), returns (b, l', D), longer for a longer l.
    """
    stretches = list(places.by_length())
    cells = torch.cat([places.inputs[rows, :longest].flatten() for rows, longest in stretches])
    looked_up = look_up(cells).split([len(rows) * longest for rows, longest in stretches])
    parts = [
        read(part.unflatten(0, (len(rows), longest)), rows)
        for part, (rows, longest) in zip(looked_up, stretches, strict=True)
    ]
    width = max(part.shape[1] for part in parts)
    filled = [pad(part, (0, 0, 0, width - part.shape[1])) for part in parts]
    return torch.cat(filled)[places.order.argsort()]


@final
class Retriever(RetrievalModel):
    """Items, sequence model and heads together: every position of a history predicts at once."""

    def __init__(
        self, items: ItemTokens, sequences: SequenceModel, config: LossConfig, *, has_codes: bool
    ) -> None:
        super().__init__()
        self.items, self.sequences, self.config = items, sequences, config
        self.heads = (
            CodeHeads(items.live.codes.shape[1], items.dim, config.code_temperature)
            if has_codes and items.live is not None
            else None
        )

    @property
    def scores_items(self) -> bool:
        """Whether items are scored by their vectors."""
        return self.config.item_weight > 0

    def states(self, tokens: Tokens, places: Places) -> Tensor:
        """Return (P, D) at the places that predict."""
        look_up = partial(self.sequences.look_up, tokens)
        states = read_by_length(look_up, places, lambda histories, _: self.sequences(histories))
        return states.flatten(0, 1)[places.predicting]

    def item_vectors(self, tokens: Tokens) -> Tensor:
        """Return (U, D): the sum of an item's tokens, which its score is made with."""
        vectors = tokens.as_targets()
        return normalize(vectors, dim=-1) if self.config.item_similarity_is_cosine else vectors

    def queries(self, states: Tensor) -> Tensor:
        """Return (P, D): states as item vectors are multiplied with, scaled."""
        unit = normalize(states, dim=-1) if self.config.item_similarity_is_cosine else states
        return unit / self.config.item_temperature

    def forward(self, listed: Listed, places: Places) -> tuple[dict[str, Tensor], Tokens]:
        """Return the losses of each place (P,), a mean over its targets, and the items' tokens."""
        tokens = self.items(listed)
        states = self.states(tokens, places)
        losses: dict[str, Tensor] = {}
        if self.scores_items:
            losses["items"] = _mean_of_targets(self._item_loss(tokens, states, places), places.targets)
        if self.heads is not None and tokens.codes is not None and tokens.code_tables is not None:
            # Which codes are right has no gradient: only their choice in the input has one.
            wanted = tokens.codes[places.targets.clamp(min=0)]
            wanted = wanted.masked_fill(places.targets.unsqueeze(2) < 0, -1)
            loss = self.heads.loss(states, tokens.code_tables, wanted)
            losses["codes"] = _mean_of_targets(loss, places.targets)
        return losses, tokens

    def _item_loss(self, tokens: Tokens, states: Tensor, places: Places) -> Tensor:
        vectors, queries = self.item_vectors(tokens), self.queries(states)
        if len(places.sampled):
            drawn = Drawn(vectors[places.sampled], places.sampled, places.log_q[places.sampled])
            return sampled_softmax_loss(queries, vectors, places.targets, drawn)
        return full_softmax_loss(queries, vectors, places.targets)


@final
class RetrieverWithLoss(nn.Module):
    """Weighted losses, each a mean over the places of the global batch; anchors of a tokenizer besides.

    loss_rank = world_size / global_size * sum over this rank's places: gradients averaged over ranks are
    those of the mean over the global batch.
    """

    def __init__(
        self,
        retriever: RetrievalModel,
        *,
        world_size: int,
        anchor_weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.retriever, self.world_size = retriever, world_size
        self.anchor_weights = anchor_weights or {}

    def forward(self, listed: Listed, places: Places, global_size: int) -> RetrieverOutput:
        """Return the loss of this rank's places."""
        losses, tokens = self.retriever(listed, places)
        config = self.retriever.config
        weights = {"items": config.item_weight, "codes": config.code_weight}
        share = self.world_size / max(global_size, 1)
        total = sum((weights[name] * loss.sum() for name, loss in losses.items()), torch.zeros(()))
        for name, errors in tokens.errors.items():
            total = total + self.anchor_weights[name] * (errors * _shown(listed, places)).sum()
        return RetrieverOutput(total * share, self._agreement(listed, tokens))

    def _agreement(self, listed: Listed, tokens: Tokens) -> Tensor:
        live, of_items = listed.live, self.retriever.items.live
        if live is None or of_items is None or tokens.codes is None:
            return torch.ones(())
        rows, codes = listed.rows, tokens.codes
        if live.places is not None:
            rows, codes = rows[live.places], codes[live.places]
        return (of_items.codes[rows] == codes).float().mean()


def _shown(listed: Listed, places: Places) -> Tensor:
    """Return (V,): how much each live item is a target, a place's targets sharing its 1.

    Anchors weigh items by it, so that shares of ranks add up to the mean over the global batch's places.
    """
    exists = places.targets >= 0
    shares = exists / exists.sum(1, keepdim=True).clamp(min=1)
    shown = shares.new_zeros(len(listed.rows)).index_add(0, places.targets[exists], shares[exists])
    return shown if listed.live is None or listed.live.places is None else shown[listed.live.places]


def _mean_of_targets(losses: Tensor, targets: Tensor) -> Tensor:
    """Return (P,): the mean over each place's targets."""
    return losses.sum(1) / (targets >= 0).sum(1).clamp(min=1)
