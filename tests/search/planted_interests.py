"""A planted problem of users with several interests, and its merged lists item by item and place by place."""

from itertools import product
from typing import Any

import numpy as np
import torch

from trec_semid.metrics.target_positions import UserItems
from trec_semid.models.queries import Queries
from trec_semid.search.ann import IndexSearch
from trec_semid.search.catalogue import Catalogue, stretch_of
from trec_semid.search.exact import ExactSearch
from trec_semid.search.interests import InterestsConfig, InterestSearch, Merge

ITEMS, INTERESTS, DIM = 25, 3, 2
MERGES: list[Merge] = ["score", "weighted", "quota", "diversity"]
LAMBDA = 0.75
ALL = slice(None)


class Problem:
    """Small whole numbers, so that scores are exact and ties are many."""

    def __init__(self, seed: int, num_users: int = 7, *, num_items: int = ITEMS) -> None:
        rng = np.random.default_rng(seed)
        self.vectors: Any = rng.integers(-2, 3, (num_items, DIM)).astype(np.float32)
        self.interests: Any = rng.integers(-2, 3, (num_users, INTERESTS, DIM)).astype(np.float32)
        self.log_probs = np.log(rng.integers(0, 4, (num_users, INTERESTS)).astype(np.float64) / 4 + 1e-300)
        self.log_probs[self.log_probs < -600] = -np.inf
        self.penalties = (np.arange(num_items) % 5 == 0).astype(np.float32)
        self.categories = rng.integers(-1, 3, (num_items, 2))
        self.targets = [rng.choice(num_items, rng.integers(1, 4), replace=False) for _ in range(num_users)]
        self.masked = [rng.choice(num_items, rng.integers(0, 6), replace=False) for _ in range(num_users)]

    def queries(self, *, has_probs: bool, own: slice = ALL) -> Queries:
        probs = torch.from_numpy(self.log_probs[own]).float() if has_probs else None
        return Queries(torch.from_numpy(self.interests[own]), None, probs)

    def users(self, own: slice = ALL) -> UserItems:
        parts: list[torch.Tensor] = []
        for each in (self.targets[own], self.masked[own]):
            parts.append(torch.from_numpy(np.concatenate([*each, np.zeros(0, np.int64)])))
            parts.append(torch.tensor([len(part) for part in each], dtype=torch.int64))
        return UserItems(*parts)

    def catalogue(self, rank: int = 0, world_size: int = 1) -> Catalogue:
        rows = stretch_of(rank, world_size, len(self.vectors))
        vectors = torch.from_numpy(self.vectors[rows])
        return Catalogue(len(self.vectors), rows.start, vectors, None, None, is_shared=world_size > 1)


def merged_by_hand(problem: Problem, user: int, merge: Merge, length: int, *, has_probs: bool) -> list[Any]:
    """Return (item, interest) pairs of a user's list, item by item and place by place."""
    listed = sorted(
        set(range(len(problem.vectors))) - (set(problem.masked[user]) - set(problem.targets[user]))
    )
    weights: Any = np.float32(problem.log_probs[user]) if has_probs else np.zeros(INTERESTS, np.float32)
    live = [m for m in range(INTERESTS) if weights[m] > -np.inf]
    score = {
        (m, item): np.float32(problem.interests[user, m] @ problem.vectors[item]) - problem.penalties[item]
        for m, item in product(live, listed)
    }
    own = {m: sorted(listed, key=lambda item: (-score[m, item], item)) for m in live}
    if merge == "quota":
        return _by_quota(own, weights if has_probs else None, length)
    counted = {key: value + (weights[key[0]] if merge == "weighted" else 0) for key, value in score.items()}
    union = {item for m in live for item in own[m][:length]}

    def best(item: int) -> tuple[float, int]:
        able = [m for m in live if merge != "diversity" or item in own[m][:length]]
        top = max(counted[m, item] for m in able)
        return float(top), next(m for m in able if counted[m, item] == top)

    if merge == "diversity":
        return _by_diversity(problem.categories, {item: best(item) for item in union}, length)
    every = {item: best(item) for item in (listed if live else [])}
    order = sorted(every, key=lambda item: (-every[item][0], item))[:length]
    return [(item, every[item][1]) for item in order]


def _by_quota(own: dict[int, list[int]], log_probs: Any, length: int) -> list[Any]:
    result: list[Any] = []
    seats = dict.fromkeys(own, 0)
    for _ in range(length):
        left = {m: [item for item in own[m] if item not in [listed for listed, _ in result]] for m in own}
        able = [m for m in own if left[m]]
        if not able:
            break
        probs = {m: 1.0 if log_probs is None else float(np.exp(np.float64(log_probs[m]))) for m in able}
        turn = max(able, key=lambda m: (probs[m] / (seats[m] + 1), -m))
        result.append((left[turn][0], turn))
        seats[turn] += 1
    return result


def _by_diversity(categories: Any, best: dict[int, tuple[float, int]], length: int) -> list[Any]:
    def differ(a: int, b: int) -> bool:
        one, other = (set(categories[item]) - {-1} or {"none"} for item in (a, b))
        return not one & other

    result: list[Any] = []
    while len(result) < length and best:
        values = {
            item: value + LAMBDA * sum(differ(item, listed) for listed, _ in result)
            for item, (value, _) in best.items()
        }
        item = min(values, key=lambda each: (-values[each], each))
        result.append((item, best.pop(item)[1]))
    return result


def padded(pairs: list[Any], at: int, length: int) -> list[int]:
    return [pair[at] for pair in pairs] + [-1] * (length - len(pairs))


def search_for(
    problem: Problem, merge: Merge, index: Any = None, *, rank: int = 0, world_size: int = 1
) -> InterestSearch:
    penalties = torch.from_numpy(problem.penalties)
    catalogue = problem.catalogue(rank, world_size)
    search = IndexSearch(index, catalogue, penalties) if index else ExactSearch([catalogue], penalties)
    config = InterestsConfig(merge=merge, diversity_field="c", diversity_weight=LAMBDA)
    return InterestSearch(search, config, torch.from_numpy(problem.categories))
