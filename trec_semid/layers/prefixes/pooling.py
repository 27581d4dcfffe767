"""Softmax pooling of every prefix of a sequence at once.

Legend: B sequences, L places, M heads, D width.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def causal_softmax_pooling(scores: Tensor, values: Tensor) -> Tensor:
    """Return y_tm = sum_{s <= t} exp(a_sm) v_s / sum_{s <= t} exp(a_sm), (B, L, M, D).

    Scores do not depend on the place that pools, so prefixes share their sums: pairs (log of the sum of exp,
    mean) of neighbouring stretches are merged, each time of twice the length (Hillis and Steele, "Data
    Parallel Algorithms", 1986). That is log2(L) steps over (B, L, M, D), with no (L, L) tensor. The weights
    of a merge are shares of a log-sum-exp: nothing overflows, and a prefix is as exact whatever comes after.

    Args:
        scores: (B, L, M).
        values: (B, L, D), or (B, L, M, D) where heads have values of their own.
    """
    log_total = scores.float()
    mean = values if values.dim() == 4 else values.unsqueeze(2).expand(-1, -1, scores.shape[2], -1)
    length, step = scores.shape[1], 1
    while step < length:
        earlier = pad(log_total[:, :-step], (0, 0, step, 0), value=-torch.inf)
        merged = torch.logaddexp(log_total, earlier)
        share = torch.exp(earlier - merged).unsqueeze(3).to(mean.dtype)
        mean = torch.lerp(mean, pad(mean[:, :-step], (0, 0, 0, 0, step, 0)), share)
        log_total, step = merged, 2 * step
    # One place has nothing to share out. What scores it takes part all the same: where ranks exchange
    # gradients, the graph is to be the same in every step.
    return mean + 0.0 * scores.unsqueeze(3) if length == 1 else mean
