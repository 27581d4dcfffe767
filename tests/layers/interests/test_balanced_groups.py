"""Balanced clustering against the best of all partitions, tried one after another."""

from itertools import combinations, product

import pytest
import torch
from torch.nn.functional import normalize

from trec_semid.layers.interests import balanced_groups as balanced
from trec_semid.layers.interests.balanced_groups import balanced_groups


def drawn(num_users: int, num_vectors: int, dim: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(num_users, num_vectors, dim, generator=generator), dim=-1)


def sum_of(vectors: torch.Tensor, groups: list[int], num_groups: int) -> float:
    """sum_g |sum_{i in g} v_i|, which is what the cosines to the centres add up to."""
    of = torch.tensor(groups)
    return sum(vectors[of == group].sum(0).norm().item() for group in range(num_groups))


def best_partition(vectors: torch.Tensor, num_groups: int) -> float:
    capacity = -(-len(vectors) // num_groups)
    return max(
        sum_of(vectors, list(groups), num_groups)
        for groups in product(range(num_groups), repeat=len(vectors))
        if max(groups.count(group) for group in set(groups)) <= capacity
    )


@pytest.mark.parametrize(("num_vectors", "num_groups"), [(6, 2), (6, 3), (7, 3), (4, 4), (3, 1)])
def test_groups_have_room_and_come_close_to_the_best_partition(num_vectors, num_groups):
    vectors = drawn(12, num_vectors)
    groups = balanced_groups(vectors, torch.ones(12, num_vectors, dtype=torch.bool), num_groups).of_vector
    counts = torch.nn.functional.one_hot(groups, num_groups).sum(1)
    assert counts.sum(1).eq(num_vectors).all()
    assert counts.max() <= -(-num_vectors // num_groups)
    shares = [
        sum_of(vectors[user], groups[user].tolist(), num_groups) / best_partition(vectors[user], num_groups)
        for user in range(12)
    ]
    assert max(shares) <= 1 + 1e-5
    assert min(shares) > 0.85
    assert sum(share > 1 - 1e-5 for share in shares) >= 9  # most are the best there is


def test_no_exchange_is_left_that_would_bring_vectors_nearer_to_their_centres():
    vectors = drawn(6, 8, seed=1)
    groups = balanced_groups(vectors, torch.ones(6, 8, dtype=torch.bool), 3).of_vector
    for user in range(6):
        own = groups[user].tolist()
        reached = sum_of(vectors[user], own, 3)
        for i, j in combinations(range(8), 2):
            swapped = own.copy()
            swapped[i], swapped[j] = own[j], own[i]
            assert sum_of(vectors[user], swapped, 3) < reached + 1e-4
        for i, group in product(range(8), range(3)):
            moved = [*own[:i], group, *own[i + 1 :]]
            assert sum_of(vectors[user], moved, 3) < reached + 1e-4 or moved.count(group) > 3


def test_planted_clusters_of_the_right_size_are_told_apart():
    centres = normalize(torch.eye(8)[:4] + 0.1, dim=-1)
    of = torch.tensor([[0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3], [3, 3, 3, 0, 0, 0, 1, 2, 1, 2, 2, 1]])
    generator = torch.Generator().manual_seed(0)
    vectors = normalize(centres[of] + 0.05 * torch.randn(2, 12, 8, generator=generator), dim=-1)
    groups = balanced_groups(vectors, torch.ones(2, 12, dtype=torch.bool), 4).of_vector
    for user in range(2):
        pairs = set(zip(of[user].tolist(), groups[user].tolist(), strict=True))
        assert len(pairs) == 4


def test_a_group_too_large_gives_up_those_that_fit_worst():
    """Five near one direction and one apart: two groups of three, though three and three cut the five."""
    vectors = normalize(torch.tensor([[[1, 0.0], [1, 0.1], [1, 0.2], [1, 0.5], [1, 0.6], [0, 1.0]]]), dim=-1)
    (groups,) = balanced_groups(vectors, torch.ones(1, 6, dtype=torch.bool), 2).of_vector.tolist()
    assert groups[0] == groups[1] == groups[2]
    assert groups[3] == groups[4] == groups[5] != groups[0]


def test_centres_are_those_of_the_groups():
    vectors = drawn(5, 6)
    result = balanced_groups(vectors, torch.ones(5, 6, dtype=torch.bool), 3)
    for user in range(5):
        for group in range(3):
            total = vectors[user][result.of_vector[user] == group].sum(0)
            torch.testing.assert_close(result.centres[user, group], normalize(total, dim=0))


def test_fewer_vectors_than_groups_stand_alone_and_missing_ones_belong_nowhere():
    vectors = drawn(3, 5)
    exists = torch.tensor([[True, True, False, False, False], [False] * 5, [True] * 5])
    result = balanced_groups(vectors, exists, 4)
    assert (result.of_vector[~exists] == -1).all()
    assert len(set(result.of_vector[0, :2].tolist())) == 2
    assert sorted(result.centres[0].norm(dim=1).round().tolist()) == [0, 0, 1, 1]
    assert not result.centres[1].any()
    # What fills up changes nothing of the others.
    alone = balanced_groups(vectors[:1, :2], exists[:1, :2], 4)
    assert alone.of_vector[0].tolist() == result.of_vector[0, :2].tolist()


def test_groups_are_the_same_whatever_other_users_there_are():
    vectors, exists = drawn(30, 8), torch.rand(30, 8, generator=torch.Generator().manual_seed(1)) > 0.3
    together = balanced_groups(vectors, exists, 3).of_vector
    one_by_one = [balanced_groups(vectors[u : u + 1], exists[u : u + 1], 3).of_vector for u in range(30)]
    assert torch.equal(together, torch.cat(one_by_one))


def test_equal_vectors_are_spread_over_groups():
    groups = balanced_groups(torch.ones(1, 6, 4) / 2, torch.ones(1, 6, dtype=torch.bool), 3).of_vector
    assert torch.bincount(groups[0], minlength=3).tolist() == [2, 2, 2]


def test_exchanges_of_many_vectors_are_few_and_groups_keep_to_their_room(monkeypatch):
    rounds, gains = [], balanced.__dict__["_gains"]
    monkeypatch.setattr(balanced, "_gains", lambda *given: rounds.append(1) or gains(*given))
    vectors, exists = drawn(4, 100, dim=16), torch.ones(4, 100, dtype=torch.bool)
    groups = balanced_groups(vectors, exists, 6).of_vector
    assert len(rounds) == 32
    assert torch.nn.functional.one_hot(groups, 6).sum(1).max() <= 17


def test_no_user_is_no_trouble():
    nobody = balanced_groups(torch.zeros(0, 3, 4), torch.zeros(0, 3, dtype=torch.bool), 2)
    assert nobody.of_vector.shape == (0, 3)
