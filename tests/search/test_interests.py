"""Merged lists of several interests against plain Python over all items."""

from itertools import product

import pytest
import torch

from tests.search.planted_interests import MERGES, Problem, merged_by_hand, padded, search_for
from trec_semid.metrics.target_positions import UNLISTED, UserItems
from trec_semid.models.queries import Queries
from trec_semid.search import ann
from trec_semid.search.ann import FlatConfig, HnswConfig, IndexSearch, IvfConfig
from trec_semid.search.catalogue import Catalogue
from trec_semid.search.exact import ExactSearch
from trec_semid.search.interests import InterestsConfig, InterestSearch
from trec_semid.search.retrieved import agreement


@pytest.mark.parametrize("index", [None, FlatConfig()], ids=["exact", "flat index"])
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("has_probs", [False, True])
def test_lists_are_merged_as_by_hand(merge, has_probs, index):
    for seed, length in product(range(6), (1, 6, 30)):
        problem = Problem(seed)
        search, queries, users = (
            search_for(problem, merge, index),
            problem.queries(has_probs=has_probs),
            problem.users(),
        )
        merged = search.merge(search.lists(queries, users, length), queries.interest_log_probs, length)
        places = search.places(queries, users, length)
        assert torch.equal(places.top_items, merged.items)
        positions = iter(places.positions.tolist())
        for user, targets in enumerate(problem.targets):
            pairs = merged_by_hand(problem, user, merge, length, has_probs=has_probs)
            assert merged.items[user].tolist() == padded(pairs, 0, length)
            assert merged.listed_by[user].tolist() == padded(pairs, 1, length)
            items = [item for item, _ in pairs]
            for target in targets:
                assert next(positions) == (1 + items.index(target) if target in items else UNLISTED)


@pytest.mark.parametrize("merge", ["score", "weighted"])
@pytest.mark.parametrize("has_probs", [False, True])
def test_one_look_at_all_scores_lists_what_the_merged_lists_hold(merge, has_probs):
    for seed in range(4):
        problem = Problem(seed)
        queries, users = problem.queries(has_probs=has_probs), problem.users()
        counted = InterestsConfig(merge=merge).counted(queries)
        search = ExactSearch([problem.catalogue()], torch.from_numpy(problem.penalties))
        whole = search.places([counted], users, 6)
        assert torch.equal(whole.top_items, search_for(problem, merge).places(queries, users, 6).top_items)


def test_quotas_hold_in_every_prefix():
    probs = torch.tensor([[0.5, 0.3, 0.2]])
    # Interests with lists of their own: the items of interest m are m, m + 3, m + 6, ...
    vectors = torch.nn.functional.one_hot(torch.arange(60) % 3, 3).float()
    queries = Queries(torch.eye(3).unsqueeze(0), None, probs.log())
    nothing = torch.zeros(0, dtype=torch.int64)
    users = UserItems(nothing, torch.zeros(1, dtype=torch.int64), nothing, torch.zeros(1, dtype=torch.int64))
    search = InterestSearch(
        ExactSearch([Catalogue(60, 0, vectors, None, None)]), InterestsConfig(merge="quota")
    )
    merged = search.merge(search.lists(queries, users, 20), queries.interest_log_probs, 20)
    assert merged.listed_by[0, :10].tolist() == [0, 1, 0, 2, 0, 1, 0, 0, 1, 2]
    for length in range(1, 21):
        seats = torch.bincount(merged.listed_by[0, :length], minlength=3)
        # D'Hondt never gives an interest less than its share rounded down.
        assert (seats >= (probs[0] * length - 1e-4).floor()).all()


@pytest.mark.parametrize("index", [IvfConfig(nprobe=10_000), HnswConfig(m=16, ef_search=200), FlatConfig()])
@pytest.mark.parametrize("few", [50_000, 0], ids=["in order of rows", "cluster by cluster"])
def test_an_index_that_reads_all_it_has_lists_as_exact_scores_do(monkeypatch, few, index):
    monkeypatch.setattr(ann, "_FEW_ITEMS", few)
    rng = torch.Generator().manual_seed(0)
    vectors, states = torch.randn(300, 8, generator=rng), torch.randn(40, 8, generator=rng)
    masked = torch.arange(40).repeat_interleave(torch.arange(40)) * 7 % 300
    users = UserItems(torch.arange(40), torch.ones(40, dtype=torch.int64), masked, torch.arange(40))
    catalogue = Catalogue(300, 0, vectors, None, None)
    exact = ExactSearch([catalogue]).top_items([Queries(states, None)], users, 12)
    listed = IndexSearch(index, catalogue, None).top_items([Queries(states, None)], users, 12)
    assert torch.equal(listed.items, exact.items)
    torch.testing.assert_close(listed.scores, exact.scores)


def agreement_of_graph(space: str, vectors: torch.Tensor, states: torch.Tensor) -> float:
    """Return the share of the exact first 20 items that a graph returns."""
    nothing = torch.zeros(len(states), dtype=torch.int64)
    users = UserItems(nothing[:0], nothing, nothing[:0], nothing)
    catalogue, queries = Catalogue(len(vectors), 0, vectors, None, None), [Queries(states, None)]
    exact = ExactSearch([catalogue]).top_items(queries, users, 20)
    config = HnswConfig.model_validate({"m": 8, "ef_construction": 40, "ef_search": 60, "space": space})
    listed = IndexSearch(config, catalogue, None).top_items(queries, users, 20)
    return float(agreement(listed.items, exact.items).mean())


def test_a_graph_of_distances_leads_to_clusters_and_one_of_products_to_long_vectors():
    rng = torch.Generator().manual_seed(0)
    of = torch.randint(20, (5000,), generator=rng)
    clusters = torch.randn(20, 64, generator=rng)[of] + 0.5 * torch.randn(5000, 64, generator=rng)
    states = clusters[:100] + 0.5 * torch.randn(100, 64, generator=rng)
    by_space = [agreement_of_graph(space, clusters, states) for space in ("euclidean", "inner_product")]
    assert by_space[0] > max(0.85, by_space[1] + 0.02), by_space
    lengths = (0.5 * torch.randn(5000, 1, generator=rng)).exp()
    uneven = torch.randn(5000, 16, generator=rng) * lengths
    by_space = [agreement_of_graph(space, uneven, uneven[:100]) for space in ("euclidean", "inner_product")]
    assert by_space[1] > max(0.8, by_space[0] + 0.05), by_space


def test_a_search_without_users_lists_nothing():
    problem = Problem(0, num_users=0)
    for merge in MERGES:
        places = search_for(problem, merge).places(problem.queries(has_probs=True), problem.users(), 5)
        assert places.top_items.shape == (0, 5)
        assert len(places.positions) == 0
