"""Contrastive losses: between two views of the same items, and between items that belong together."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
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
    """(P,) ints: which item it is, in numbers that both sides share."""
    penalty: Tensor
    """(P,): taken off the score of the item where it stands among those to choose from."""


def paired_info_nce(left: PairedItems, right: PairedItems, *, temperature: float) -> Tensor:
    """Return the mean over pairs (i, j) of -log softmax_j(h_i . h_j / temperature - penalty_j), both ways.

    The other items of the batch are negatives, but neither j again, nor i itself. With log(events of j)
    as penalty it is the sampled softmax over all items (On Sampling Strategies for Neural Network-based
    Collaborative Filtering, 2017; logQ correction), as items occur in a batch by their events.
    """
    return _PairedInfoNce.apply(left.vectors, right.vectors, left[1:], right[1:], 1 / temperature)


class _PairedInfoNce(torch.autograd.Function):
    """Vectors of both sides (P, D) to the loss; the gradient of all scores is at hand once they are.

    Written out because a step of a small network is little beside twenty passes over (P, P) scores.
    """

    @staticmethod
    def forward(
        ctx: Any,
        left: Tensor,
        right: Tensor,
        asked: tuple[Tensor, Tensor],
        choices: tuple[Tensor, Tensor],
        sharpness: float,
    ) -> Tensor:
        """Return () the loss."""
        scores = (left @ right.T).mul_(sharpness)
        crossed = asked[0].unsqueeze(1) == choices[0]
        rows, row_losses = _told_apart(scores - choices[1], crossed | _again(choices[0]), dim=1)
        columns, column_losses = _told_apart(
            scores.sub_(asked[1].unsqueeze(1)), crossed | _again(asked[0]), dim=0
        )
        # Of each way, d loss / d scores = (softmax - identity) / P, and half of both counts.
        gradient = rows.add_(columns).mul_(0.5 / len(left))
        gradient.diagonal().sub_(1 / len(left))
        ctx.save_for_backward(left, right, gradient.mul_(sharpness))
        return (row_losses.mean() + column_losses.mean()) / 2

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Send the gradient of the scores to both sides."""
        left, right, gradient = ctx.saved_tensors
        return gradient @ right * grads[0], gradient.T @ left * grads[0], None, None, None


def _again(items: Tensor) -> Tensor:
    """Return (P, P) bool: where another pair has the same item on this side."""
    return items == items.unsqueeze(1)


def _told_apart(scores: Tensor, is_same: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the softmax (P, P) of scores, which are overwritten, and -log of its diagonal (P,)."""
    is_same.fill_diagonal_(False)
    scores.masked_fill_(is_same, -torch.inf)
    own, top = scores.diagonal().clone(), scores.amax(dim, keepdim=True)
    total = scores.sub_(top).exp_().sum(dim, keepdim=True)
    return scores.div_(total), (total.log() + top).flatten() - own
