"""Contrastive losses: between two views of the same items, and between items that belong together."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from trec_semid.core.arrays import Ints

_ROWS_AT_ONCE = 256
"""Of scores; a MiB for 1,024 pairs."""
_LARGEST_EXPONENT = 70.0
"""Single precision ends at exp(88); sums of a batch's terms and products of two need room."""


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


def paired_info_nce(
    left: PairedItems, right: PairedItems, *, temperature: float, weights: Tensor | None = None
) -> Tensor:
    """Return the mean over pairs (i, j) of -log softmax_j(h_i . h_j / temperature - penalty_j), both ways.

    The other items of the batch are negatives, but neither j again, nor i itself. With log(events of j)
    as penalty it is the sampled softmax over all items (On Sampling Strategies for Neural Network-based
    Collaborative Filtering, 2017; logQ correction), as items occur in a batch by their events.

    Args:
        left: of the pairs.
        right: of the pairs.
        temperature: small is sharp.
        weights: (P,) of pairs in the mean; equal where not given.
    """
    own = torch.ones_like(left.penalty) if weights is None else weights
    shares = own / own.sum()
    return _PairedInfoNce.apply(left.vectors, right.vectors, left[1:], right[1:], (1 / temperature, shares))


class _PairedInfoNce(torch.autograd.Function):
    """Vectors of both sides (P, D) to the loss, and their gradients with it.

    Written out because a step of a small network is little beside passes over (P, P) scores. Both ways share
    E_ij = exp(h_i . h_j / temperature): penalties are of columns or of rows alone, so they weigh its sums,
    and both softmaxes are E times a number of the row and one of the column. Rows are worked through in
    stretches that a processor's cache holds.
    """

    @staticmethod
    def forward(
        ctx: Any,
        left: Tensor,
        right: Tensor,
        asked: tuple[Tensor, Tensor],
        choices: tuple[Tensor, Tensor],
        settings: tuple[float, Tensor],
    ) -> Tensor:
        """Return () the loss; settings are 1 / temperature, and the pairs' shares (P,) in the mean."""
        sharpness, shares = settings
        dtype = _wide_enough(left.dtype, sharpness, asked[1], choices[1])
        one, other = left.to(dtype), right.to(dtype)
        # Of a choice's terms: on the right, where the left is asked, and on the left.
        weights = [torch.exp(-penalty.to(dtype)) for penalty in (choices[1], asked[1])]
        stretches = _stretches(asked[0], choices[0])
        terms, totals = _terms(one * sharpness, other, weights, stretches)
        own = sharpness * (one * other).sum(1)
        penalties = choices[1], asked[1]
        losses = [total.log() - own + penalty for total, penalty in zip(totals, penalties, strict=True)]
        # Of each way, d loss / d scores = (softmax - identity) x the pair's share, and half of both counts.
        scale = sharpness * shares.to(dtype)
        of_rows = torch.stack([0.5 * scale / totals[0], weights[1]], 1)
        of_columns = torch.stack([weights[0], 0.5 * scale / totals[1]])
        to_left, to_right = -scale.unsqueeze(1) * other, -scale.unsqueeze(1) * one
        for rows, _, *again in stretches:
            factors = of_rows[rows] @ of_columns
            for way, (at, beside) in enumerate(again):
                factors[at, beside] -= of_rows[rows][at, way] * of_columns[way, beside]
            gradient = terms[rows].mul_(factors)
            to_left[rows].addmm_(gradient, other)
            to_right.addmm_(gradient.T, one[rows])
        ctx.save_for_backward(to_left.to(left.dtype), to_right.to(left.dtype))
        return ((losses[0] + losses[1]) @ shares.to(dtype)).to(left.dtype) / 2

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Send the gradient to both sides."""
        to_left, to_right = ctx.saved_tensors
        return to_left * grads[0], to_right * grads[0], None, None, None


class _Places(NamedTuple):
    """Some places of a stretch of (P, P)."""

    rows: Tensor
    """Counted from the stretch's first."""
    columns: Tensor


class _Stretch(NamedTuple):
    """Neighbouring rows of (P, P), and places off the diagonal where items are the same."""

    rows: slice
    crossed: _Places
    """The one asked with and the choice: left out both ways."""
    again_right: _Places
    """The row's own choice and the column's: left out where the left side asks."""
    again_left: _Places
    """The same of the left side: left out where the right side asks."""


def _stretches(left: Tensor, right: Tensor) -> list[_Stretch]:
    """Return the stretches of pairs of (P,) items on the left and (P,) on the right."""
    firsts, device = range(0, len(left), _ROWS_AT_ONCE), left.device
    one, other = left.cpu().numpy(), right.cpu().numpy()
    split: list[list[_Places]] = []
    for at, beside in (_equal(one, other), _equal(other, other), _equal(one, one)):
        bounds = np.searchsorted(at, [*firsts, len(one)]).tolist()
        places = torch.from_numpy(np.stack([at, beside])).to(device)
        parts = zip(firsts, bounds, bounds[1:], strict=False)
        split.append([_Places(places[0, a:b] - first, places[1, a:b]) for first, a, b in parts])
    slices = (slice(first, first + _ROWS_AT_ONCE) for first in firsts)
    return [_Stretch(rows, *places) for rows, *places in zip(slices, *split, strict=True)]


def _equal(rows: Ints, columns: Ints) -> tuple[Ints, Ints]:
    """Return rows, ascending, and columns of the places off the diagonal where (P,) and (P,) are the same."""
    order = np.argsort(columns)
    ordered = columns[order]
    first, last = (np.searchsorted(ordered, rows, side) for side in ("left", "right"))
    counts = last - first
    at = np.repeat(np.arange(len(rows)), counts)
    others = order[np.arange(len(at)) + np.repeat(first - (np.cumsum(counts) - counts), counts)]
    apart = at != others
    return at[apart], others[apart]


def _terms(
    one: Tensor, other: Tensor, weights: list[Tensor], stretches: list[_Stretch]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return E (P, P), 0 where crossed, and its weighted sums (P,) of rows and of columns."""
    terms, of_rows = one.new_empty(len(one), len(one)), one.new_empty(len(one))
    of_columns = one.new_zeros(len(one))
    for rows, crossed, again_right, again_left in stretches:
        part = torch.mm(one[rows], other.T, out=terms[rows]).exp_()
        part[crossed] = 0
        with _left_out(part, again_right):
            torch.mv(part, weights[0], out=of_rows[rows])
        with _left_out(part, again_left):
            of_columns.addmv_(part.T, weights[1][rows])
    return terms, (of_rows, of_columns)


@contextmanager
def _left_out(part: Tensor, places: _Places) -> Iterator[None]:
    values = part[places]
    part[places] = 0
    yield
    part[places] = values


def _wide_enough(dtype: torch.dtype, sharpness: float, *penalties: Tensor) -> torch.dtype:
    """Return a type whose range holds exp of all scores of unit-length vectors, less their penalties."""
    largest = sharpness + max(float(penalty.abs().max()) for penalty in penalties)
    return dtype if largest < _LARGEST_EXPONENT else torch.float64
