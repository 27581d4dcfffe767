"""Which interests a user is going to have: a distribution over them, and the likeliest few.

Legend: B users, P places that predict, W targets a place, C levels, K codewords of a level, M interests of a
user, L longest history, D width, d width of a codeword.
"""

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from trec_semid.models.dictionary.sources import numbers_of
from trec_semid.models.heads.beams import Beams, NextLogProbs
from trec_semid.models.heads.chained import ChainedHeads

_MOST_CELLS = 2**24
"""Prefixes that a table of those that items have may hold, of a byte each; more are searched for."""


class Chosen(NamedTuple):
    """Interests of B users, likeliest first."""

    interests: Tensor
    """(B, M, C) int64; of a log-probability of -inf it means nothing."""
    log_probs: Tensor
    """(B, M) float32; -inf after the last."""


@final
class InterestPosterior(nn.Module):
    """p(m_1 .. m_C | h) = prod_c p(m_c | h, m_<c), by `ChainedHeads` over rows E_c W_c + O_c.

    E are the codewords, which the rows follow where these move (without a gradient to them), W and O are
    learnt. Source: GemiRec, 2025, section on MIPDM: that a generative model predicts the future interests
    is the paper's; its network is not public.
    """

    def __init__(self, num_levels: int, size: int, row_dim: int, dim: int, temperature: float) -> None:
        super().__init__()
        self.heads = ChainedHeads(num_levels, dim, temperature)
        self.maps = nn.Parameter(torch.randn(num_levels, row_dim, dim) / row_dim**0.5)
        self.offsets = nn.Parameter(torch.randn(num_levels, size, dim) * 0.02)

    def tables(self, rows: Tensor) -> Tensor:
        """Return (C, K, D), what states are compared with, of codewords (C, K, d)."""
        return torch.bmm(rows.detach(), self.maps) + self.offsets

    def loss(self, states: Tensor, rows: Tensor, interests: Tensor, targets: Tensor) -> Tensor:
        """Return (P, W): mean over levels of -log p(m_c | h, m_<c); 0 where there is no target.

        Args:
            states: (P, D).
            rows: (C, K, d) codewords.
            interests: (P, W, C) of the targets.
            targets: (P, W); -1 for none.
        """
        told = interests.masked_fill(targets.unsqueeze(2) < 0, -1)
        return self.heads.loss(states, self.tables(rows), told)

    def next_log_probs(self, states: Tensor, rows: Tensor) -> NextLogProbs:
        """Return what a beam over levels asks, of states (B, D) and codewords (C, K, d)."""
        return self.heads.next_log_probs(states, self.tables(rows))


@torch.no_grad()
def likeliest_interests(
    next_log_probs: NextLogProbs,
    sizes: tuple[int, int, int],
    *,
    num_interests: int,
    width: int,
    existing: Tensor | None = None,
    device: torch.device | None = None,
) -> Chosen:
    """Return the M distinct interests of highest log-probability that a beam over levels finds.

    With one level, or a width of K^(C - 1) or more, they are exactly the likeliest; of those that exist, with
    as much width as there are of them. A prefix that none of them begins with takes no place in the beam.

    Args:
        next_log_probs: the posterior.
        sizes: B, C, K.
        num_interests: M.
        width: prefixes that go on to the next level.
        existing: (n,) numbers of the interests that may be returned, ascending; any where not given.
        device: where.
    """
    num_users, num_levels, size = sizes
    nothing = torch.zeros(num_users, 1, dtype=torch.int64, device=device)
    beams = Beams(nothing.new_zeros(num_users, 1, 0), nothing, nothing.float(), nothing)
    for level in range(num_levels):
        totals = beams.scores.unsqueeze(2) + next_log_probs(level, beams)
        is_last = level == num_levels - 1
        if existing is not None:
            before = numbers_of(beams.codes, size) if level else nothing.expand(-1, totals.shape[1])
            # The number of a tuple begins with that of its prefix, in digits of base K.
            prefixes = existing // size ** (num_levels - 1 - level)
            totals = totals.masked_fill(~_has_items(before, prefixes, size, level), -torch.inf)
        flat = totals.flatten(1)
        scores, cells = flat.topk(min(num_interests if is_last else width, flat.shape[1]))
        parents, codes = cells // size, cells % size
        told = beams.codes.gather(1, parents.unsqueeze(2).expand(-1, -1, level))
        beams = Beams(torch.cat([told, codes.unsqueeze(2)], 2), parents, scores, parents)
    return _filled(Chosen(beams.codes, beams.scores), num_interests)


def _has_items(before: Tensor, prefixes: Tensor, size: int, level: int) -> Tensor:
    """Return (B, n, K) bool: which codewords after (B, n) prefixes before a level begin an interest of items.

    Args:
        before: numbers of tuples of `level` codewords.
        prefixes: (m,) numbers of those of `level + 1` that items have, ascending.
        size: K.
        level: 0 to C - 1.
    """
    if size ** (level + 1) <= _MOST_CELLS:
        # A search for each of B x n x K numbers costs a training step far more than a table does.
        table = torch.zeros(size ** (level + 1), dtype=torch.bool, device=before.device)
        return table.index_fill_(0, prefixes, True).view(-1, size)[before]
    numbers = before.unsqueeze(2) * size + torch.arange(size, device=before.device)
    return torch.isin(numbers, prefixes.unique_consecutive())


@torch.no_grad()
def interests_of_histories(interests: Tensor, lengths: Tensor, size: int, num_interests: int) -> Chosen:
    """Return the M most frequent interests of each history, of equally frequent ones the most recent first.

    Log-probabilities are those of their shares of the history.

    Args:
        interests: (B, L, C) of the history, oldest first.
        lengths: (B,).
        size: K.
        num_interests: M.
    """
    num_users, longest, num_levels = interests.shape
    at = torch.arange(longest, device=interests.device).expand(num_users, -1)
    is_there = at < lengths.unsqueeze(1)
    numbers = numbers_of(interests, size).masked_fill(~is_there, -1)
    ordered, places = numbers.sort(dim=1, stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    run = is_first.cumsum(1) - 1
    counts = torch.zeros_like(run).scatter_add_(1, run, (ordered >= 0).long())
    # Ties of a sort that is stable stand in order, so the last of a run is its most recent place.
    latest = torch.zeros_like(run).scatter_reduce_(1, run, places, "amax")
    worth = torch.where(counts > 0, counts * longest + latest, -1)
    best = worth.topk(min(num_interests, longest), dim=1)
    chosen = interests.gather(1, latest.gather(1, best.indices).unsqueeze(2).expand(-1, -1, num_levels))
    shares = counts.gather(1, best.indices).float() / lengths.clamp(min=1).unsqueeze(1)
    return _filled(Chosen(chosen.long(), shares.log()), num_interests)


def _filled(chosen: Chosen, num_interests: int) -> Chosen:
    """Return so many interests, those that are missing with a log-probability of -inf."""
    missing = num_interests - chosen.log_probs.shape[1]
    pad = torch.nn.functional.pad
    return Chosen(
        pad(chosen.interests, (0, 0, 0, missing)), pad(chosen.log_probs, (0, missing), value=-torch.inf)
    )
