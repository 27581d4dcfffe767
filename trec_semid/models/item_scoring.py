"""How items are scored by vectors, and what is learnt of them: the same for every model that does.

Legend: U listed items, P places that predict, W targets a place, T soft targets of a place, D width.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from trec_semid.data.retrieval.places import Places
from trec_semid.layers.full_softmax import (
    Drawn,
    full_softmax_loss,
    list_softmax_loss,
    sampled_softmax_loss,
)
from trec_semid.models.item_tokens import Tokens
from trec_semid.models.retriever import LossConfig


def item_vectors(tokens: Tokens, config: LossConfig) -> Tensor:
    """Return (U, D): the sum of an item's tokens, of unit length where scores are cosines."""
    vectors = tokens.as_targets()
    return normalize(vectors, dim=-1) if config.item_similarity_is_cosine else vectors


def query_vectors(states: Tensor, config: LossConfig) -> Tensor:
    """Return (..., D): states (..., D) as item vectors are multiplied with, over the temperature."""
    unit = normalize(states, dim=-1) if config.item_similarity_is_cosine else states
    return unit / config.item_temperature


def item_losses(queries: Tensor, vectors: Tensor, targets: Tensor, places: Places) -> Tensor:
    """Return (P, W): cross-entropy over all listed items, or over drawn ones where the batch has any.

    Args:
        queries: (P, D).
        vectors: (U, D).
        targets: (P, W) positions among the listed items; -1 for none, whose loss is 0.
        places: whose sampled items stand for all others.
    """
    if (drawn := _drawn(vectors, places)) is not None:
        return sampled_softmax_loss(queries, vectors, targets, drawn)
    return full_softmax_loss(queries, vectors, targets)


def mean_of_targets(losses: Tensor, targets: Tensor) -> Tensor:
    """Return (P,): the mean over each place's targets, of (P, W) losses that are 0 where there is none."""
    return losses.sum(1) / (targets >= 0).sum(1).clamp(min=1)


def list_losses(queries: Tensor, vectors: Tensor, places: Places) -> Tensor:
    """Return (P, M, T): cross-entropy of each item of a teacher's lists, by each of M queries of a place.

    Where items are drawn to stand for all others, those of a list are scored beside them.

    Args:
        queries: (P, M, D).
        vectors: (U, D).
        places: with `soft_targets`, whose sampled items stand for all others.
    """
    assert places.soft_targets is not None, "asked where a teacher lists something"
    return list_softmax_loss(queries, vectors, places.soft_targets, _drawn(vectors, places))


def _drawn(vectors: Tensor, places: Places) -> Drawn | None:
    if not len(places.sampled):
        return None
    return Drawn(vectors[places.sampled], places.sampled, places.log_q[places.sampled])


def target_and_list_losses(queries: Tensor, vectors: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    """Return (P, W) of `item_losses` and (P, T) of `list_losses`, of queries (P, D) and vectors (U, D).

    Over all items both share a query's log-normaliser, which is nearly all that they cost.
    """
    assert places.soft_targets is not None, "asked where a teacher lists something"
    if len(places.sampled):
        of_lists = list_losses(queries.unsqueeze(1), vectors, places).squeeze(1)
        return item_losses(queries, vectors, places.targets, places), of_lists
    both = full_softmax_loss(queries, vectors, torch.cat([places.targets, places.soft_targets], 1))
    return both[:, : places.targets.shape[1]], both[:, places.targets.shape[1] :]


def mean_of_lists(losses: Tensor, places: Places) -> Tensor:
    """Return (P,): the sum over each place's list of (P, T) losses, times what its items are worth."""
    assert places.soft_shares is not None, "asked where a teacher lists something"
    return (losses * places.soft_shares).sum(1)
