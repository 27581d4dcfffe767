"""Exact search over stretches of a catalogue on several ranks, against one rank and against plain Python."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.ranks import run_ranks
from tests.search.planted_interests import MERGES, Problem, merged_by_hand, padded, search_for
from trec_semid.metrics.target_positions import UNLISTED, UserItems
from trec_semid.models.queries import Queries
from trec_semid.runtime.ranks import Ranks, process_group
from trec_semid.search.ann import FlatConfig
from trec_semid.search.catalogue import Catalogue, stretch_of
from trec_semid.search.exact import ExactSearch
from trec_semid.search.interests import Merge

ITEMS, LENGTH, MOST_USERS = 23, 6, 9
CASES = [
    (seed, num_models, num_users, lowers)
    for seed in range(4)
    for num_models in (1, 2)
    for num_users in (0, 2, MOST_USERS)
    for lowers in (False, True)
]


def problem(seed: int, num_models: int) -> tuple[list[torch.Tensor], list[torch.Tensor], list[Any]]:
    """Draw models of small whole numbers, so that scores are exact and ties are many, and users."""
    rng, models = np.random.default_rng(seed), range(num_models)
    vectors = [torch.from_numpy(rng.integers(-2, 3, (ITEMS, 2)).astype(np.float32)) for _ in models]
    codes = [torch.from_numpy(rng.integers(0, 3, (ITEMS, 2))) for _ in models]
    users = []
    for _ in range(MOST_USERS):
        states = [rng.integers(-2, 3, 2).astype(np.float32) for _ in models]
        log_probs = [-rng.integers(0, 3, (2, 3)).astype(np.float32) for _ in models]
        targets = rng.choice(ITEMS, rng.integers(1, 4), replace=False)
        masked = rng.choice(ITEMS, rng.integers(0, 5), replace=False)
        users.append((states, log_probs, targets, masked))
    return vectors, codes, users


PENALTIES = (torch.arange(ITEMS) % 5 == 0).float()


def search_on(ranks: Ranks, seed: int, num_models: int, num_users: int, lowers: bool) -> Any:
    """Return positions and lists of this rank's users, every so-manieth."""
    vectors, codes, users = problem(seed, num_models)
    rows = stretch_of(ranks.rank, ranks.world_size, ITEMS)
    catalogues = [
        Catalogue(ITEMS, rows.start, v[rows], c[rows], None, is_shared=ranks.world_size > 1)
        for v, c in zip(vectors, codes, strict=True)
    ]
    own = users[:num_users][ranks.rank :: ranks.world_size]
    queries = [
        Queries(
            torch.from_numpy(np.array([user[0][m] for user in own], np.float32).reshape(-1, 2)),
            torch.from_numpy(np.array([user[1][m] for user in own], np.float32).reshape(-1, 2, 3)),
        )
        for m in range(num_models)
    ]
    items: list[torch.Tensor] = []
    for at in (2, 3):
        parts = [np.asarray(user[at], np.int64) for user in own]
        items.append(torch.from_numpy(np.concatenate([*parts, np.zeros(0, np.int64)])))
        items.append(torch.tensor([len(part) for part in parts], dtype=torch.int64))
    search = ExactSearch(catalogues, PENALTIES if lowers else None)
    places = search.places(queries, UserItems(*items), LENGTH)
    return places.positions.tolist(), places.top_items.tolist()


def by_hand(seed: int, num_models: int, num_users: int, lowers: bool) -> list[Any]:
    """Return positions and list of each user, by scoring and sorting items one by one."""
    vectors, codes, users = problem(seed, num_models)
    answers = []
    for states, log_probs, targets, masked in users[:num_users]:
        scores = []
        for item in range(ITEMS):
            of_models = [
                float(states[m] @ vectors[m][item].numpy())
                + sum(float(log_probs[m][r][int(codes[m][item, r])]) for r in range(2))
                for m in range(num_models)
            ]
            scores.append(sum(of_models) / num_models - (float(PENALTIES[item]) if lowers else 0.0))
        listed = [item for item in range(ITEMS) if item not in set(masked) - set(targets)]
        listed.sort(key=lambda item: (-scores[item], item))
        answers.append(([listed.index(target) + 1 for target in targets], listed[:LENGTH]))
    return answers


INTEREST_CASES = [
    (seed, merge, index, num_users)
    for seed in range(2)
    for merge in MERGES
    for index in (None, FlatConfig())
    for num_users in (0, 1, MOST_USERS)
]


def merge_on(ranks: Ranks, seed: int, merge: Merge, index: Any, num_users: int) -> Any:
    """Return positions, lists and whose each item is, of this rank's users of several interests."""
    problem, own = Problem(seed, num_users), slice(ranks.rank, None, ranks.world_size)
    search = search_for(problem, merge, index, rank=ranks.rank, world_size=ranks.world_size)
    queries, users = problem.queries(has_probs=True, own=own), problem.users(own)
    merged = search.merge(search.lists(queries, users, LENGTH), queries.interest_log_probs, LENGTH)
    places = search.places(queries, users, LENGTH)
    return places.positions.tolist(), merged.items.tolist(), merged.listed_by.tolist()


def merged_lists_by_hand(seed: int, merge: Merge, num_users: int) -> list[Any]:
    problem = Problem(seed, num_users)
    answers = []
    for user, targets in enumerate(problem.targets):
        pairs = merged_by_hand(problem, user, merge, LENGTH, has_probs=True)
        items, listed_by = padded(pairs, 0, LENGTH), padded(pairs, 1, LENGTH)
        places = [1 + items.index(target) if target in items else UNLISTED for target in targets]
        answers.append((places, items, listed_by))
    return answers


def answers_of_rank() -> tuple[int, list[Any], list[Any]]:
    with process_group() as ranks:
        searched = [search_on(ranks, *case) for case in CASES]
        return ranks.rank, searched, [merge_on(ranks, *case) for case in INTEREST_CASES]


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_with_a_stretch_each_answer_as_scoring_and_sorting_by_hand(world_size):
    for rank, searched, merged in run_ranks(answers_of_rank, world_size):
        for case, (positions, lists) in zip(CASES, searched, strict=True):
            own = by_hand(*case)[rank::world_size]
            assert positions == [position for of_user, _ in own for position in of_user]
            assert lists == [listed for _, listed in own]
        for (seed, merge, _, num_users), answer in zip(INTEREST_CASES, merged, strict=True):
            own = merged_lists_by_hand(seed, merge, num_users)[rank::world_size]
            assert answer[0] == [position for of_user, *_ in own for position in of_user]
            assert answer[1] == [items for _, items, _ in own]
            assert answer[2] == [listed_by for *_, listed_by in own]


def test_one_rank_with_the_whole_catalogue_does_so_too():
    alone = Ranks(0, 1, 0, torch.device("cpu"))
    for case in CASES:
        if case[2]:
            expected = by_hand(*case)
            positions, lists = search_on(alone, *case)
            assert positions == [position for of_user, _ in expected for position in of_user]
            assert lists == [listed for _, listed in expected]
