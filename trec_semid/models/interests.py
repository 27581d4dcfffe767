"""Models with several vectors a user, of which a target teaches one.

Legend: B rows, L longest history, U listed items, F tokens of an item, M interests, P places that predict, W
targets a place, D width.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from trec_semid.data.retrieval.places import Places
from trec_semid.models.exported import Exported, HistoryProgram, of_last
from trec_semid.models.item_scoring import (
    item_losses,
    item_vectors,
    list_losses,
    mean_of_lists,
    mean_of_targets,
    query_vectors,
)
from trec_semid.models.item_tokens import ItemTokens, Listed, Tokens
from trec_semid.models.queries import Queries
from trec_semid.models.retrieval_model import RetrievalModel, read_by_length
from trec_semid.models.retriever import LossConfig


class InterestExtractor(nn.Module, ABC):
    """Reads histories as M vectors at every place."""

    num_interests: int
    """M."""

    @abstractmethod
    def forward(self, histories: Tensor) -> Tensor:
        """Return interests (B, L, M, D) of what is read up to each place, the place itself included.

        Args:
            histories: (B, L, F, D) what it reads of the items, oldest first; places from a row's length
                on mean nothing.
        """

    def at_end(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """Return interests (B, M, D) of whole histories (B, L, F, D) of (B,) lengths, 1 or more."""
        return of_last(self(histories), lengths)

    def look_up(self, tokens: Tokens, rows: Tensor) -> Tensor:
        """Return (num_rows, 1, D): what it reads of some listed items, here the sum of their tokens."""
        return tokens.total.index_select(0, rows).unsqueeze(1)


@final
class InterestProgram(HistoryProgram):
    """Interests at the last item; see `HistoryProgram`."""

    outputs = ("vectors",)

    def __init__(self, extractor: InterestExtractor, config: LossConfig) -> None:
        super().__init__()
        self.extractor, self.config = extractor, config

    def forward(self, histories: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """See `HistoryProgram`: (B, M, D) of (B, L, 1, D)."""
        return (query_vectors(self.extractor.at_end(histories, lengths), self.config),)


@final
class MultiInterestModel(RetrievalModel):
    """Every place of a history has M interests; a target teaches the one that scores it highest.

    m* = argmax_m u_m . v_target, without a gradient to the choice; loss = -log softmax(u_m* . V)[target]. Of
    several targets of a place each chooses for itself. Source: Cen et al., "Controllable Multi-Interest
    Framework for Recommendation" (ComiRec), KDD 2020, eq 8 to 10, with the harness's softmax.
    """

    def __init__(self, items: ItemTokens, extractor: InterestExtractor, config: LossConfig) -> None:
        super().__init__()
        self.items, self.extractor, self.config = items, extractor, config
        self.loss_weights = config.weights()

    @property
    def has_item_vectors(self) -> bool:
        """Whether items are scored by vectors: nothing else scores them."""
        return True

    def interests(self, tokens: Tokens, places: Places) -> Tensor:
        """Return (P, M, D) at the places that predict."""
        look_up = partial(self.extractor.look_up, tokens)
        flat = read_by_length(look_up, places, lambda histories, _: self.extractor(histories).flatten(2))
        at_places = flat.flatten(0, 1)[places.predicting]
        return at_places.unflatten(1, (self.extractor.num_interests, -1))

    def item_vectors(self, tokens: Tokens) -> Tensor:
        """Return (U, D): the sum of an item's tokens."""
        return item_vectors(tokens, self.config)

    def forward(self, listed: Listed, places: Places) -> tuple[dict[str, Tensor], Tokens]:
        """Return the losses of each place (P,), that of items a mean over its targets, and items' tokens."""
        tokens = self.items(listed)
        vectors = item_vectors(tokens, self.config)
        queries = query_vectors(self.interests(tokens, places), self.config)
        chosen = chosen_interests(queries, vectors, places.targets)
        losses = losses_of_chosen(queries, vectors, chosen, places)
        of_places = {"items": mean_of_targets(losses, places.targets)}
        if places.soft_targets is not None:
            chosen = chosen_interests(queries, vectors, places.soft_targets)
            of_lists = list_losses(queries, vectors, places).gather(1, chosen.unsqueeze(1)).squeeze(1)
            of_places["listed_items"] = mean_of_lists(of_lists, places)
        return of_places, tokens

    def read_of(self, tokens: Tokens, items: Tensor) -> Tensor:
        """See `RetrievalModel`: what the extractor reads, (U, F, D)."""
        return self.extractor.look_up(tokens, torch.arange(len(items), device=items.device))

    def exported(self, code_tables: Tensor | None) -> Exported:
        """See `RetrievalModel`; no code tables (R, K + 1, D) are read."""
        return Exported(InterestProgram(self.extractor, self.config))

    def queries(self, tokens: Tokens, places: Places) -> Queries:
        """Return the interests (B, M, D) of the B users whose histories are given; zeros of an empty one."""
        at_places = self.interests(tokens, places).float()
        return Queries(of_users(query_vectors(at_places, self.config), places), None)


def chosen_interests(queries: Tensor, vectors: Tensor, targets: Tensor) -> Tensor:
    """Return (P, W) int64: the interest that scores each target highest, the lower one of equals.

    Args:
        queries: (P, M, D).
        vectors: (U, D) of the listed items.
        targets: (P, W) positions among them; of -1 the choice means nothing.
    """
    with torch.no_grad():
        of_targets = embedding(targets.clamp(min=0), vectors)
        return torch.einsum("pmd,pwd->pwm", queries.float(), of_targets.float()).argmax(2)


def losses_of_chosen(queries: Tensor, vectors: Tensor, chosen: Tensor, places: Places) -> Tensor:
    """Return (P, W): each target's cross-entropy by the interest chosen for it; 0 where there is none.

    A query costs a normaliser over all items, so it is asked once an interest or once a target, whichever are
    fewer.

    Args:
        queries: (P, M, D).
        vectors: (U, D) of the listed items.
        chosen: (P, W) interest of each target.
        places: with targets (P, W), -1 for none.
    """
    targets, num_interests = places.targets, queries.shape[1]
    if num_interests == 1:
        return item_losses(queries.squeeze(1), vectors, targets, places)
    if targets.shape[1] <= num_interests:
        own = queries.gather(1, chosen.unsqueeze(2).expand(-1, -1, queries.shape[2]))
        return losses_of_own(own, vectors, places)
    # (P, M, W): an interest sees the targets that chose it, and nothing in the places of the others.
    is_own = chosen.unsqueeze(1) == torch.arange(num_interests, device=chosen.device).unsqueeze(1)
    theirs = torch.where(is_own, targets.unsqueeze(1), -1)
    losses = item_losses(queries.flatten(0, 1), vectors, theirs.flatten(0, 1), places)
    return losses.view(theirs.shape).sum(1)


def losses_of_own(queries: Tensor, vectors: Tensor, places: Places) -> Tensor:
    """Return (P, W): cross-entropy of each target by a query of its own; 0 where there is no target.

    Args:
        queries: (P, W, D).
        vectors: (U, D) of the listed items.
        places: with targets (P, W), -1 for none.
    """
    targets = places.targets
    losses = item_losses(queries.flatten(0, 1), vectors, targets.reshape(-1, 1), places)
    return losses.view(targets.shape)


def of_users(at_places: Tensor, places: Places) -> Tensor:
    """Return (B, ...): what stands at the last place of each history, (P, ...); zeros of an empty one."""
    has_history = (places.lengths > 0).nonzero().squeeze(1)
    room = at_places.new_zeros(len(places.lengths), *at_places.shape[1:])
    return room.index_copy(0, has_history, at_places)
