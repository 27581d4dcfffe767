"""The model of a retriever that learns: items as tokens, histories, and losses by name.

Legend: B users, M interests of a user, P places that predict, U listed items, L longest history, F tokens of
an item, R positions, K codes, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from trec_semid.core.errors import ConfigError
from trec_semid.data.retrieval.places import Places
from trec_semid.models.exported import Exported
from trec_semid.models.heads.beams import NextLogProbs
from trec_semid.models.item_tokens import ItemTokens, Listed, Tokens
from trec_semid.models.queries import Queries, TwoStageQueries


class RetrievalModel(nn.Module, ABC):
    """Items, and what predicts the next of them. Runs unsharded; sharding is applied from outside.

    Its state is what a checkpoint holds. A search asks it for `item_vectors` and `queries` where every item
    is scored, and for `next_log_probs` where a beam goes over codes: a model implements what its method
    (`models.retriever.Retriever`) says that it is searched by.
    """

    items: ItemTokens
    loss_weights: dict[str, float]
    """Of each loss that `forward` names."""

    @property
    def has_item_vectors(self) -> bool:
        """Whether items are scored by vectors."""
        return False

    @property
    def predicts_codes(self) -> bool:
        """Whether codes of the next item are predicted."""
        return False

    @property
    def has_independent_codes(self) -> bool:
        """Whether codes are predicted, each without the others of its item."""
        return False

    @property
    def scores_catalogue(self) -> bool:
        """Whether every item can be scored; not by codes alone that depend on each other."""
        return True

    noted: tuple[str, ...] = ()
    """Names of the numbers that `note_catalogue` returns."""
    catalogue_facts: Mapping[str, float] = MappingProxyType({})
    """What it returned when a catalogue was built last."""

    @abstractmethod
    def forward(self, listed: Listed, places: Places) -> tuple[dict[str, Tensor], Tokens]:
        """Return the losses of each place by name, (P,) each, and the items' tokens."""

    def item_vectors(self, tokens: Tokens) -> Tensor:
        """Return (U, D), what listed items are scored by; asked only where `has_item_vectors`."""
        raise ConfigError(f"{type(self).__name__} does not score items by vectors of theirs.")

    def queries(self, tokens: Tokens, places: Places) -> Queries:
        """Return what all items are scored with, of the B users whose histories are given."""
        raise ConfigError(f"{type(self).__name__} does not score all items. Set evaluation.beam_width.")

    def states_of_users(self, tokens: Tokens, places: Places) -> Tensor:
        """Return (B, D), what the model knows of the users whose histories are given, before any head."""
        raise ConfigError(
            f"{type(self).__name__} has no one state a user. Set evaluation.list_metrics.state_rank = false."
        )

    def two_stage_queries(self, tokens: Tokens, places: Places) -> TwoStageQueries:
        """Return what proposes items and what decides among them, of the B users with these histories."""
        raise ConfigError(f"{type(self).__name__} proposes no items. Leave out evaluation.candidates.")

    def note_catalogue(self, vectors: Tensor, rows: slice) -> dict[str, float]:
        """Take in what all items are scored by now, before users are asked for; return numbers to tell.

        All ranks call it together, whenever a catalogue is built of the model. Most models note nothing.

        Args:
            vectors: (n, D) item vectors of this rank's stretch.
            rows: the n item rows of the stretch.
        """
        return {}

    def next_log_probs(self, tokens: Tokens, places: Places) -> NextLogProbs:
        """Return what a beam search asks, of the B users whose histories are given."""
        raise ConfigError(f"{type(self).__name__} does not predict codes. Leave out evaluation.beam_width.")

    def read_of(self, tokens: Tokens, items: Tensor) -> Tensor:
        """Return (U, F, D): what is read of the listed items (U,) in a history, which serving keeps of each.

        Args:
            tokens: listed items.
            items: (U,) their item rows.
        """
        raise self._not_exported()

    def exported(self, code_tables: Tensor | None) -> Exported:
        """Return the programs that serving runs, over what `read_of` says; (R, K + 1, D) rows of codes."""
        raise self._not_exported()

    def _not_exported(self) -> ConfigError:
        return ConfigError(f"{type(self).__name__} says no programs for serving, so it cannot be exported.")


def retrieval_model_in(model: nn.Module) -> RetrievalModel:
    """Return the model that is asked for lists inside one that is placed on ranks."""
    return next(module for module in model.modules() if isinstance(module, RetrievalModel))


def catalogue_facts(model: nn.Module | None) -> dict[str, float]:
    """Return what the one model inside has told of its items last; nothing of several, or of none."""
    models = [] if model is None else [each for each in model.modules() if isinstance(each, RetrievalModel)]
    return dict(models[0].catalogue_facts) if len(models) == 1 else {}


class RetrieverOutput(NamedTuple):
    """What one rank says of its part of a batch."""

    loss: Tensor
    """() this rank's part of the loss, times the number of ranks: its mean over ranks is the global mean."""
    agreement: Tensor
    """() share of the codes just chosen that are the map's; 1 where none are chosen."""


def read_by_length(
    look_up: Callable[[Tensor], Tensor], places: Places, read: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return (B, L, D) or longer: what is read of histories, each with those of about its length.

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
    # The argsort of an order undoes it: rows stand as in the batch again.
    return torch.cat(filled)[places.order.argsort()]


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
        weights = self.retriever.loss_weights
        share = self.world_size / max(global_size, 1)
        # A scalar on the CPU adds to tensors of any device.
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
    # Those that are not there add 0 to the first item: to pick the others would wait for the device.
    at = places.targets.clamp(min=0).flatten()
    shown = shares.new_zeros(len(listed.rows)).index_add(0, at, shares.flatten())
    return shown if listed.live is None or listed.live.places is None else shown[listed.live.places]
