"""Contrastive loss between two views of the same items."""

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
