import pytest
import torch

from trec_semid.metrics.target_positions import UserItems
from trec_semid.models.queries import Queries
from trec_semid.search.catalogue import Catalogue
from trec_semid.search.exact import ExactSearch

USERS, ITEMS, DIM = 4, 30, 5


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("penalties", [None, 0.5 * (torch.arange(ITEMS) % 3 == 0)])
@pytest.mark.parametrize("num_models", [1, 3])
@pytest.mark.parametrize("interests", [(), (4,)])
def test_targets_stand_where_the_mean_score_less_the_penalty_puts_them(penalties, num_models, interests):
    """Of a model with several interests a user, the highest of theirs is its score; others are beside it."""
    vectors = [drawn(seed, ITEMS, DIM) for seed in range(num_models)]
    states = [drawn(10, USERS, *interests, DIM), drawn(11, USERS, DIM), drawn(12, USERS, 2, DIM)][:num_models]
    search = ExactSearch([Catalogue(ITEMS, 0, each, None, None) for each in vectors], penalties)
    targets, none = torch.tensor([3, 29, 0, 7]), torch.zeros(USERS, dtype=torch.int64)
    users = UserItems(targets, torch.ones_like(targets), targets[:0], none)
    places = search.places([Queries(each, None) for each in states], users, 5)
    tables = [
        (state @ vector.T).view(USERS, -1, ITEMS).amax(1)
        for state, vector in zip(states, vectors, strict=True)
    ]
    mean = torch.stack(tables).mean(0) - (0 if penalties is None else penalties)
    order = mean.argsort(1, descending=True)
    assert places.top_items.tolist() == order[:, :5].tolist()
    expected = [order[user].tolist().index(target) + 1 for user, target in enumerate(targets.tolist())]
    assert places.positions.tolist() == expected


@pytest.mark.parametrize("log_probs", [None, torch.tensor([[0.0, -1.0, -torch.inf]]).expand(USERS, 3)])
def test_of_several_interests_the_one_that_scores_an_item_highest_counts(log_probs):
    vectors, interests = drawn(0, ITEMS, DIM), drawn(1, USERS, 3, DIM)
    search = ExactSearch([Catalogue(ITEMS, 0, vectors, None, None)])
    targets, none = torch.tensor([3, 29, 0, 7]), torch.zeros(USERS, dtype=torch.int64)
    users = UserItems(targets, torch.ones_like(targets), targets[:0], none)
    places = search.places([Queries(interests, None, log_probs)], users, 5)
    for user, target in enumerate(targets.tolist()):
        weights = [0.0] * 3 if log_probs is None else log_probs[user].tolist()
        scores = [
            max(float(interests[user, m] @ vectors[item]) + weights[m] for m in range(3))
            for item in range(ITEMS)
        ]
        order = sorted(range(ITEMS), key=lambda item: -scores[item])
        assert places.top_items[user].tolist() == order[:5]
        assert places.positions[user] == order.index(target) + 1
