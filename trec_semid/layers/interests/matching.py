"""Groups of targets are matched with interests, one to one, of many users at once.

Legend: P users, W targets of a user, M groups and interests, D width.
"""

from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor

from trec_semid.layers.interests.balanced_groups import balanced_groups

MOST_INTERESTS = 6
"""All M! matchings are looked at: 720 of six, 40,320 of eight."""


def best_matching(scores: Tensor) -> Tensor:
    """Return (P, M) int64: the interest of each group in the matching of the largest sum of scores.

    max over permutations s of sum_g scores[g, s(g)], by looking at all of them: exact, as the Hungarian
    method is, and the same few operations for all users. Of equal sums the first permutation wins.

    Args:
        scores: (P, M, M) of groups and interests, M up to `MOST_INTERESTS`.
    """
    orders = _orders(scores.shape[1]).to(scores.device)
    cells = orders + torch.arange(scores.shape[1], device=scores.device) * scores.shape[1]
    totals = scores.float().flatten(1)[:, cells].sum(2)
    return orders[totals.argmax(1)]


@lru_cache
def _orders(num: int) -> Tensor:
    """Return (num!, num): all permutations in lexical order."""
    assert num <= MOST_INTERESTS, "a config with more is refused"
    return torch.tensor(list(permutations(range(num))))


def matched_interests(interests: Tensor, targets: Tensor, exists: Tensor) -> Tensor:
    """Return (P, W) int64: the interest that each target is taught to.

    Targets are clustered into as many balanced groups as there are interests; groups and interests are
    matched so that the cosines of centres with interests are largest in sum; a target belongs to the
    interest of its group. Source: DMIL (disentangled multi-interest learning) of HyMiRec, 2025, as far as it
    is public, and RED-Rec's code, whose k-means knows no balance. No choice has a gradient.

    Args:
        interests: (P, M, D) of unit length.
        targets: (P, W, D) of unit length.
        exists: (P, W) bool; what is said of a target that does not exist means nothing.
    """
    groups = balanced_groups(targets, exists, interests.shape[1])
    with torch.no_grad(), torch.autocast(interests.device.type, enabled=False):
        cosines = torch.einsum("pgd,pmd->pgm", groups.centres, interests.float())
    return best_matching(cosines).gather(1, groups.of_vector.clamp(min=0))
