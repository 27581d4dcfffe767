"""Codewords that are moving averages of what chooses them, over all ranks.

Legend: B items, R positions, K codes, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trec_semid.tokenizers.inputs.shards import sum_over_ranks

_FEWEST = 1e-5
"""Moving counts below this have not met an item for so long that their average means nothing."""


class Averages(NamedTuple):
    """Moving sums that codewords are the quotients of."""

    counts: Tensor
    """(R, K): items of a batch that choose each code."""
    sums: Tensor
    """(R, K, D): of what they choose it for."""


def even_averages(codebooks: Tensor, batch_size: int) -> Averages:
    """Return averages that say what codebooks (R, K, D) say, as if batches chose all codes equally often."""
    counts = codebooks.new_full(codebooks.shape[:2], batch_size / codebooks.shape[1])
    return Averages(counts, codebooks.detach() * counts.unsqueeze(2))


def moving_averages(averages: Averages, points: Tensor, codes: Tensor, decay: float) -> Averages:
    """Return N_k <- decay N_k + (1 - decay) n_k and S_k <- decay S_k + (1 - decay) sum of the points of k.

    C_k = S_k / N_k is then the codeword. Items are summed over all ranks. Source: Neural Discrete
    Representation Learning, 2017, appendix A.1.

    Args:
        averages: of (R, K) codes.
        points: (B, R, D).
        codes: (B, R) int64; 'missing' (K) counts for no code.
        decay: how much stays as it was.
    """
    num_positions, num_codes = averages.counts.shape
    flat, values = codes + torch.arange(num_positions, device=codes.device) * num_codes, points
    is_coded = codes < num_codes
    if not is_coded.all():
        flat, values = flat[is_coded].unsqueeze(1), values[is_coded].unsqueeze(1)
    flat = flat.flatten()
    sums = torch.zeros_like(averages.sums).flatten(0, 1).index_add_(0, flat, values.flatten(0, 1))
    counts = torch.bincount(flat, minlength=num_positions * num_codes).to(sums)
    # In one exchange.
    both = sum_over_ranks(torch.cat([counts.unsqueeze(1), sums], dim=1)).unflatten(0, averages.counts.shape)
    return Averages(
        averages.counts.lerp(both[..., 0], 1 - decay), averages.sums.lerp(both[..., 1:], 1 - decay)
    )


def codewords_of(averages: Averages, before: Tensor) -> Tensor:
    """Return codebooks (R, K, D): the averages, or `before` (R, K, D) where one met no item for long."""
    counts = averages.counts.unsqueeze(2)
    return torch.where(counts > _FEWEST, averages.sums / counts.clamp(min=_FEWEST), before)


def restarted(averages: Averages, codebooks: Tensor, is_new: Tensor, batch_size: int) -> Averages:
    """Return averages in which codes `is_new` (R, K) stand where codebooks (R, K, D) have them.

    They are as heavy as a code of average use, so that a few items do not carry them off.
    """
    even = even_averages(codebooks, batch_size)
    return Averages(
        torch.where(is_new, even.counts, averages.counts),
        torch.where(is_new.unsqueeze(2), even.sums, averages.sums),
    )
