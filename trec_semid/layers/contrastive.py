"""Contrastive losses: between two views of the same items, and between items that belong together."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def info_nce(left: Tensor, right: Tensor, *, temperature: float) -> Tensor:
    """Return the symmetric InfoNCE loss, mean over the batch.

    L = (CE(left right^T / temperature, identity) + CE(right left^T / temperature, identity)) / 2.
    Source: Learning Transferable Visual Models From Natural Language Supervision, 2021, figure 3.

    Args:
        left: (B, D) unit-length vectors of B items.
        right: (B, D) unit-length vectors of the same items; all other items of the batch are negatives.
        temperature: small is sharp.
    """
    logits = left @ right.T / temperature
    labels = torch.arange(len(left), device=left.device)
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


class PairedItems(NamedTuple):
    """One side of P pairs."""

    vectors: Tensor
    """(P, D) unit length."""
    items: Tensor
    """(P,) int64: which item it is, in numbers that both sides share."""
    penalty: Tensor
    """(P,): taken off the score of the item where it stands among those to choose from."""


def paired_info_nce(left: PairedItems, right: PairedItems, *, temperature: float) -> Tensor:
    """Return the mean over pairs (i, j) of -log softmax_j(h_i . h_j / temperature - penalty_j), both ways.

    The other items of the batch are negatives, but neither j again, nor i itself. With log(events of j)
    as penalty it is the sampled softmax over all items (On Sampling Strategies for Neural Network-based
    Collaborative Filtering, 2017; logQ correction), as items occur in a batch by their events.
    """
    logits = left.vectors @ right.vectors.T / temperature
    return (_one_way(logits, left, right) + _one_way(logits.T, right, left)) / 2


def _one_way(logits: Tensor, asked: PairedItems, choices: PairedItems) -> Tensor:
    items = choices.items
    is_same = (items == items.unsqueeze(1)) | (items == asked.items.unsqueeze(1))
    is_same.fill_diagonal_(False)
    labels = torch.arange(len(items), device=items.device)
    return cross_entropy((logits - choices.penalty).masked_fill(is_same, -torch.inf), labels)
