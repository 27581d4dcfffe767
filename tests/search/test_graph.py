"""Decoding along a graph of items, against plain Python and against scores of all items."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from tests.ranks import run_ranks
from trec_semid.core.errors import ConfigError
from trec_semid.metrics.target_positions import UNLISTED, UserItems
from trec_semid.models.queries import Queries
from trec_semid.runtime.ranks import process_group
from trec_semid.search.catalogue import Catalogue
from trec_semid.search.exact import ExactSearch
from trec_semid.search.graph import (
    Graph,
    GraphConfig,
    GraphSearch,
    build_all_edges,
    build_edges,
    expect_affordable,
)

ITEMS, POSITIONS, CODES, USERS, LENGTH = 19, 3, 4, 6, 5


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, UserItems]:
    """Return tables, codes, log-probabilities in quarters, so that sums are exact, and users."""
    rng = np.random.default_rng(seed)
    tables = torch.from_numpy(rng.normal(size=(POSITIONS, CODES + 1, 5)).astype(np.float32))
    codes = torch.from_numpy(rng.integers(0, CODES, (ITEMS, POSITIONS)))
    log_probs = -torch.from_numpy(rng.integers(0, 9, (USERS, POSITIONS, CODES + 1))) / 4
    targets = torch.from_numpy(rng.integers(0, ITEMS, USERS))
    masked = torch.from_numpy(rng.integers(0, ITEMS, 2 * USERS))
    ones = torch.ones(USERS, dtype=torch.int64)
    return tables, codes, log_probs, UserItems(targets, ones, masked, 2 * ones)


def edges_by_hand(tables: torch.Tensor, codes: torch.Tensor, num_edges: int) -> list[list[int]]:
    edges = []
    for i in range(ITEMS):
        sums = []
        for j in set(range(ITEMS)) - {i}:
            rows = [(tables[r, codes[i, r]], tables[r, codes[j, r]]) for r in range(POSITIONS)]
            sums.append((-round(float(sum(cosine_similarity(a, b, dim=0) for a, b in rows)), 4), j))
        edges.append([j for _, j in sorted(sums)[:num_edges]])
    return edges


@pytest.mark.parametrize("seed", range(3))
def test_edges_lead_to_the_items_of_the_most_alike_codes(seed):
    tables, codes, _, _ = problem(seed)
    edges = torch.cat([build_edges(tables, codes, 4, rows) for rows in (slice(0, 7), slice(7, ITEMS))])
    expected = edges_by_hand(tables, codes, 4)
    assert [set(row) for row in edges.tolist()] == [set(row) for row in expected]
    few = build_edges(tables, codes, ITEMS, slice(0, ITEMS))
    assert bool((few[:, -1] == -1).all())


def edges_of_rank() -> torch.Tensor:
    tables, codes, _, _ = problem(2)
    with process_group() as ranks:
        return build_all_edges(tables, codes, 4, ranks)


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_with_a_stretch_each_build_the_edges_of_one(world_size):
    tables, codes, _, _ = problem(2)
    expected = build_edges(tables, codes, 4, slice(0, ITEMS))
    for edges in run_ranks(edges_of_rank, world_size):
        assert edges.dtype == torch.int32
        assert torch.equal(edges, expected)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_pools_are_followed_as_by_hand(seed, steps):
    tables, codes, log_probs, users = problem(seed)
    edges, start, penalties = (
        build_edges(tables, codes, 3, slice(0, ITEMS)),
        [2, 11, 5],
        torch.arange(ITEMS) % 3 / 4,
    )
    config = GraphConfig(pool=LENGTH, num_steps=steps)
    search = GraphSearch(Graph(edges, torch.tensor(start)), codes, config, penalties)
    places = search.places(log_probs, users, LENGTH)
    for user in range(USERS):
        target = int(users.targets[user])
        hidden = set(users.masked[2 * user : 2 * user + 2].tolist()) - {target}

        def best(items: set[int], user: int = user, hidden: set[int] = hidden) -> list[int]:
            """Return items by score, down to the one that makes LENGTH of such as may be listed."""
            scored = [
                (
                    -float(
                        sum(log_probs[user, r, codes[item, r]] for r in range(POSITIONS)) - penalties[item]
                    ),
                    item,
                )
                for item in items
            ]
            pool = []
            for _, item in sorted(scored):
                if len([one for one in pool if one not in hidden]) < LENGTH:
                    pool.append(item)
            return pool

        pool = best(set(start))
        for _ in range(steps):
            pool = best({*pool, *(ahead for item in pool for ahead in edges[item].tolist())})
        pool = [item for item in pool if item not in hidden]
        assert places.top_items[user].tolist() == (pool + [-1] * LENGTH)[:LENGTH]
        assert places.positions[user] == (pool.index(target) + 1 if target in pool else UNLISTED)


def test_a_start_within_the_history_is_walked_through_and_takes_no_place():
    tables, codes, log_probs, _ = problem(5)
    edges, start = build_edges(tables, codes, 4, slice(0, ITEMS)), torch.tensor([2, 11, 5])
    nothing, ones = start[:0], torch.ones(1, dtype=torch.int64)
    users = UserItems(nothing, 0 * ones, start, 3 * ones)
    search = GraphSearch(Graph(edges, start), codes, GraphConfig(pool=3, num_steps=1))
    listed = search.places(log_probs[:1], users, 3).top_items[0]
    ahead = sorted(set(edges[start].flatten().tolist()) - set(start.tolist()))
    sums = [-float(sum(log_probs[0, r, codes[item, r]] for r in range(POSITIONS))) for item in ahead]
    assert listed.tolist() == [item for _, item in sorted(zip(sums, ahead, strict=True))][:3]


def test_where_everything_leads_to_everything_lists_are_those_of_exact_scores():
    tables, codes, log_probs, users = problem(7)
    edges = build_edges(tables, codes, ITEMS - 1, slice(0, ITEMS))
    config = GraphConfig(pool=ITEMS, num_steps=1)
    places = GraphSearch(Graph(edges, torch.tensor([4, 9, 3, 17])), codes, config).places(
        log_probs, users, LENGTH
    )
    exact = ExactSearch([Catalogue(ITEMS, 0, None, codes, None)]).places(
        [Queries(None, log_probs)], users, LENGTH
    )
    assert torch.equal(places.top_items, exact.top_items)
    assert torch.equal(places.positions, exact.positions)


def test_a_graph_that_training_would_wait_for_is_refused_and_says_up_to_how_many_items_it_goes():
    told = r"evaluation\.graph: 300,000 items of 32 codes .* up to 131,072 items .* trec-semid evaluate"
    with pytest.raises(ConfigError, match=told):
        expect_affordable(300_000, 32, 1)
    with pytest.raises(ConfigError):
        expect_affordable(131_200, 32, 1)
    expect_affordable(131_072, 32, 1)
    expect_affordable(300_000, 32, 6)


def test_a_search_without_users_lists_nothing():
    tables, codes, log_probs, _ = problem(7)
    edges = build_edges(tables, codes, 3, slice(0, ITEMS))
    search = GraphSearch(Graph(edges, torch.tensor([4, 9])), codes, GraphConfig(pool=LENGTH))
    nothing = torch.zeros(0, dtype=torch.int64)
    places = search.places(log_probs[:0], UserItems(nothing, nothing, nothing, nothing), LENGTH)
    assert places.top_items.shape == (0, LENGTH)
    assert len(places.positions) == 0
