"""How far apart the interests of a user are, and how varied the lists are that they give.

None of these has a standard name: GemiRec's 'AMR' has no public definition, and each of the first three may
be it. All are numbers of one user, (B, C) at C cutoffs, NaN where there is nothing to measure.

Legend: B users, M interests of a user, N places of a list, G candidates (distinct items of a user's lists),
C cutoffs, D width, V values of a category field.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from trec_semid.core.shapes import expect_shape


class Candidates(NamedTuple):
    """The union of the interests' lists of each user."""

    items: Tensor
    """(B, G) int64 item rows, ascending; -1 where a user has fewer, before and after the others."""
    places: Tensor
    """(B, G, M) int64: place of the item in each interest's list, from 0; N where that list lacks it."""
    length: int
    """N."""


def union_of_lists(lists: Tensor) -> Candidates:
    """Return the distinct items of each user's M lists, and where each list has them.

    Args:
        lists: (B, M, N) item rows, best first, none twice in a list; -1 after the last.
    """
    num_users, num_interests, length = lists.shape
    flat = lists.flatten(1)
    ordered, at = flat.sort(dim=1, stable=True)
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    numbers = torch.empty_like(flat).scatter_(1, at, is_new.cumsum(1) - 1)
    items = torch.full_like(flat, -1).scatter_(1, numbers, flat)
    own = torch.arange(flat.shape[1], device=flat.device)
    # What is absent is one candidate of many entries, all of which write the same: no list has it.
    place = torch.where(flat < 0, length, own % max(length, 1))
    places = lists.new_full((num_users, flat.shape[1] * num_interests), length)
    places.scatter_(1, numbers * num_interests + own // max(length, 1), place)
    return Candidates(items, places.unflatten(1, (flat.shape[1], num_interests)), length)


def interest_cosine(interests: Tensor, exists: Tensor) -> Tensor:
    """Return the mean cosine of pairs of a user's interests, (B,) float64.

    interest_cosine = mean over m < m' of q_m . q_m' / (|q_m| |q_m'|): 1 where all interests are one.

    Args:
        interests: (B, M, D)
        exists: (B, M) bool: which of them list anything; the others are in no pair.

    Raises:
        ShapeError: other shapes.
    """
    expect_shape(interests, "B M D", "interests")
    expect_shape(exists, "B M", "exists", B=len(interests), M=interests.shape[1])
    unit = normalize(interests.double(), dim=2)
    cosines = unit @ unit.transpose(1, 2)
    return _mean_of_pairs(cosines, exists.unsqueeze(1) & exists.unsqueeze(2))


def interest_overlap(candidates: Candidates, cutoffs: Sequence[int]) -> Tensor:
    """Return the mean Jaccard index of pairs of the interests' own lists, (B, C) float64.

    interest_overlap@N = mean over m < m' of |L_m and L_m'| / |L_m or L_m'|, L_m the first N of interest m's
    own list of the catalogue, as sets. Pairs of two empty lists are left out.

    Args:
        candidates: of the users' lists.
        cutoffs: each N.
    """
    overlaps: list[Tensor] = []
    for cutoff in cutoffs:
        holds = (candidates.places < min(cutoff, candidates.length)).double()
        shared = holds.transpose(1, 2) @ holds
        sizes = shared.diagonal(dim1=1, dim2=2)
        union = sizes.unsqueeze(1) + sizes.unsqueeze(2) - shared
        overlaps.append(_mean_of_pairs(shared / union.clamp(min=1), union > 0))
    return torch.stack(overlaps, 1)


def own_interest_share(
    vectors: Tensor, interests: Tensor, exists: Tensor, listed_by: Tensor, cutoffs: Sequence[int]
) -> Tensor:
    """Return the share of listed items whose nearest interest is the one that listed them, (B, C) float64.

    own_interest_share@N = share of the first N items i with argmax_m cos(q_m, v_i) = the interest that listed
    i; of equally near interests the first counts.

    Args:
        vectors: (B, N, D) of the items of the merged list.
        interests: (B, M, D)
        exists: (B, M) bool: which of them list anything.
        listed_by: (B, N) number of the interest that listed the item; -1 where the list is shorter.
        cutoffs: each N.

    Raises:
        ShapeError: other shapes.
    """
    num_users, num_interests, dim = interests.shape
    expect_shape(vectors, "B N D", "vectors", B=num_users, D=dim)
    expect_shape(listed_by, "B N", "listed_by", B=num_users, N=vectors.shape[1])
    expect_shape(exists, "B M", "exists", B=num_users, M=num_interests)
    cosines = normalize(vectors.double(), dim=2) @ normalize(interests.double(), dim=2).transpose(1, 2)
    nearest = cosines.masked_fill_(~exists.unsqueeze(1), -torch.inf).argmax(2)
    is_own = (nearest == listed_by) & (listed_by >= 0)
    return _up_to(is_own.double(), cutoffs) / _at_least_one(_up_to((listed_by >= 0).double(), cutoffs))


def num_categories(categories: Tensor, cutoffs: Sequence[int]) -> Tensor:
    """Return how many different categories the first N items have, (B, C) float64.

    categories@N = |union of the categories of the first N items|; an item may have several, or none.

    Args:
        categories: (B, N, V) category ids of the listed items, filled up with -1.
        cutoffs: each N.
    """
    num_users, length, num_values = categories.shape
    flat = categories.flatten(1)
    ordered, at = flat.sort(dim=1, stable=True)
    is_first = ordered >= 0
    # A stable sort: of equal categories the one that stands first in the list comes first.
    is_first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    news = torch.zeros_like(flat, dtype=torch.float64).scatter_(1, at, is_first.double())
    return _up_to(news.view(num_users, length, num_values).sum(2), cutoffs)


def list_distance(vectors: Tensor, exists: Tensor, cutoffs: Sequence[int]) -> Tensor:
    """Return the mean of 1 - cosine over pairs of listed items, (B, C) float64; NaN with fewer than two.

    list_distance@N = mean over i < j among the first N of 1 - v_i . v_j / (|v_i| |v_j|). With u = v / |v|,
    sum over i < j of u_i . u_j = (|sum u|^2 - sum |u|^2) / 2, so all cutoffs take one running sum.
    Source: intra-list similarity of Ziegler et al., "Improving Recommendation Lists Through Topic
    Diversification", 2005, here as a distance, and a mean over pairs.

    Args:
        vectors: (B, N, D) of the listed items, best first.
        exists: (B, N) bool: whether there is an item.
        cutoffs: each N.

    Raises:
        ShapeError: other shapes.
    """
    expect_shape(vectors, "B N D", "vectors")
    expect_shape(exists, "B N", "exists", B=len(vectors), N=vectors.shape[1])
    unit = normalize(vectors.double(), dim=2) * exists.unsqueeze(2)
    at = _last(cutoffs, vectors.shape[1], vectors.device)
    of_sums = unit.cumsum(1)[:, at].square().sum(2)
    num_items = _up_to(exists.double(), cutoffs)
    cosines = (of_sums - _up_to(unit.square().sum(2), cutoffs)) / 2
    pairs = num_items * (num_items - 1) / 2
    return (1 - cosines / pairs).masked_fill_(pairs < 1, torch.nan)


def _mean_of_pairs(values: Tensor, counts: Tensor) -> Tensor:
    """Return (B,) the mean of (B, M, M) values above the diagonal where they count; NaN where none does."""
    counts = counts.triu(diagonal=1)
    total = torch.where(counts, values, 0.0).sum((1, 2))
    return total / _at_least_one(counts.sum((1, 2)).double())


def _at_least_one(numbers: Tensor) -> Tensor:
    """Return numbers to divide by: NaN instead of 0."""
    return numbers.masked_fill(numbers == 0, torch.nan)


def _up_to(values: Tensor, cutoffs: Sequence[int]) -> Tensor:
    """Return (B, C) sums of the first N of (B, N) values."""
    return values.cumsum(1)[:, _last(cutoffs, values.shape[1], values.device)]


def _last(cutoffs: Sequence[int], length: int, device: torch.device) -> Tensor:
    return torch.tensor([min(cutoff, length) - 1 for cutoff in cutoffs], device=device)
