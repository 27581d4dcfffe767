import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import normalize

from trec_semid.layers.interests.balanced_groups import balanced_groups
from trec_semid.layers.interests.matching import MOST_INTERESTS, best_matching, matched_interests


@pytest.mark.parametrize("num", range(1, MOST_INTERESTS + 1))
def test_the_matching_is_that_of_the_hungarian_method(num):
    scores = torch.randn(50, num, num, generator=torch.Generator().manual_seed(num))
    matched = best_matching(scores)
    for user in range(50):
        rows, columns = linear_sum_assignment(scores[user].numpy(), maximize=True)
        assert rows.tolist() == list(range(num))
        assert matched[user].tolist() == columns.tolist()


def test_of_equal_sums_the_first_permutation_wins():
    assert best_matching(torch.zeros(2, 3, 3)).tolist() == [[0, 1, 2]] * 2


def test_targets_go_to_the_interest_of_their_group():
    generator = torch.Generator().manual_seed(3)
    interests = normalize(torch.randn(20, 3, 6, generator=generator), dim=-1)
    targets = normalize(torch.randn(20, 7, 6, generator=generator), dim=-1)
    exists = torch.rand(20, 7, generator=generator) > 0.2
    matched = matched_interests(interests, targets, exists)
    groups = balanced_groups(targets, exists, 3)
    for user in range(20):
        cosines = (groups.centres[user] @ interests[user].T).numpy()
        _, interest_of = linear_sum_assignment(cosines, maximize=True)
        for target in exists[user].nonzero().flatten().tolist():
            assert matched[user, target] == interest_of[groups.of_vector[user, target]]


def test_every_interest_is_taught_where_there_are_targets_enough():
    generator = torch.Generator().manual_seed(4)
    # All interests but the first are far from all targets: by the nearest one they would never be taught.
    interests = normalize(torch.tensor([[1.0, 0, 0], [-1, 0, 0.1], [-1, 0.1, 0]]), dim=-1).expand(9, 3, 3)
    targets = normalize(torch.randn(9, 6, 3, generator=generator).abs() + torch.tensor([3.0, 0, 0]), dim=-1)
    assert (targets @ interests.mT).argmax(2).unique().tolist() == [0]
    matched = matched_interests(interests, targets, torch.ones(9, 6, dtype=torch.bool))
    assert torch.nn.functional.one_hot(matched, 3).sum(1).eq(2).all()


def test_a_single_target_goes_to_the_nearest_interest():
    generator = torch.Generator().manual_seed(5)
    interests = normalize(torch.randn(30, 4, 6, generator=generator), dim=-1)
    target = normalize(torch.randn(30, 1, 6, generator=generator), dim=-1)
    matched = matched_interests(interests, target, torch.ones(30, 1, dtype=torch.bool))
    assert torch.equal(matched, (target @ interests.mT).argmax(2))
