"""The likeliest interests against all tuples, and those of a history against counting."""

from collections import Counter
from itertools import product

import pytest
import torch

from trec_semid.models.dictionary import posterior as module
from trec_semid.models.dictionary.posterior import (
    InterestPosterior,
    interests_of_histories,
    likeliest_interests,
)
from trec_semid.models.dictionary.sources import numbers_of
from trec_semid.models.heads.beams import Beams

USERS, LEVELS, SIZE, DIM = 3, 3, 4, 6


def posterior() -> tuple[InterestPosterior, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    made = InterestPosterior(LEVELS, SIZE, 5, DIM, 0.3)
    with torch.no_grad():
        for weight in made.heads.parameters():
            weight.normal_()
    return made, torch.randn(USERS, DIM), torch.randn(LEVELS, SIZE, 5)


def log_prob(
    made: InterestPosterior, state: torch.Tensor, rows: torch.Tensor, interest: tuple[int, ...]
) -> float:
    """Of one tuple: what the loss says of it."""
    told = torch.tensor(interest).view(1, 1, -1)
    loss = made.loss(state[None], rows, told, torch.zeros(1, 1, dtype=torch.int64))
    return -LEVELS * loss.item()


@pytest.mark.parametrize("num_interests", [1, 5, 70])
def test_a_wide_beam_returns_the_likeliest_of_all_tuples(num_interests: int):
    made, states, rows = posterior()
    with torch.no_grad():
        chosen = likeliest_interests(
            made.next_log_probs(states, rows), (USERS, LEVELS, SIZE), num_interests=num_interests, width=16
        )
        for user in range(USERS):
            every = {
                each: log_prob(made, states[user], rows, each) for each in product(range(SIZE), repeat=LEVELS)
            }
            assert sum(torch.tensor(list(every.values())).exp()) == pytest.approx(1.0, abs=1e-4)
            best = sorted(every, key=lambda each: -every[each])[:num_interests]
            found = [tuple(each) for each in chosen.interests[user, : len(best)].tolist()]
            assert found == best
            expected = torch.tensor([every[each] for each in best])
            torch.testing.assert_close(chosen.log_probs[user, : len(best)], expected, atol=1e-4, rtol=1e-4)
        assert (chosen.log_probs[:, SIZE**LEVELS :] == -torch.inf).all()
        assert chosen.interests.shape == (USERS, num_interests, LEVELS)


@pytest.mark.parametrize(("width", "cells"), [(3, 64), (16, 64), (3, 0), (3, 63)])
def test_only_interests_that_some_item_has_are_returned(
    width: int, cells: int, monkeypatch: pytest.MonkeyPatch
):
    """Also where the beam is as narrow as these are few: what none of them begins with takes no place.

    Prefixes are looked up while a table of K^level may hold them, and searched for beyond.
    """
    searched: list[int] = []

    def search(numbers: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
        searched.append(len(among))
        return (numbers.unsqueeze(-1) == among).any(-1)

    monkeypatch.setattr(module, "_MOST_CELLS", cells)
    monkeypatch.setattr(torch, "isin", search)
    made, states, rows = posterior()
    some = torch.tensor([[0, 1, 2], [3, 3, 3], [2, 0, 0]])
    with torch.no_grad():
        chosen = likeliest_interests(
            made.next_log_probs(states, rows),
            (USERS, LEVELS, SIZE),
            num_interests=4,
            width=width,
            existing=numbers_of(some, SIZE).sort().values,
        )
    for user in range(USERS):
        order = sorted(some.tolist(), key=lambda each: -log_prob(made, states[user], rows, each))
        assert chosen.interests[user, :3].tolist() == order
        assert chosen.log_probs[user, 3] == -torch.inf
    assert len(searched) == sum(SIZE ** (level + 1) > cells for level in range(LEVELS))


def test_one_level_needs_no_beam():
    heads = torch.log_softmax(torch.randn(2, 7, generator=torch.Generator().manual_seed(1)), 1)

    def ask(_: int, beams: Beams) -> torch.Tensor:
        return heads.unsqueeze(1)

    chosen = likeliest_interests(ask, (2, 1, 7), num_interests=3, width=1)
    torch.testing.assert_close(chosen.log_probs, heads.topk(3).values)
    torch.testing.assert_close(chosen.interests.squeeze(2), heads.topk(3).indices)


def test_interests_of_a_history_are_the_most_frequent_ones_and_of_equals_the_most_recent():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([9, 1, 4, 7, 9])
    histories = torch.randint(2, (5, 9, 2), generator=generator)
    chosen = interests_of_histories(histories, lengths, 2, 3)
    for user, length in enumerate(lengths.tolist()):
        told = [tuple(each) for each in histories[user, :length].tolist()]
        counts = Counter(told)
        last = {each: at for at, each in enumerate(told)}
        best = sorted(counts, key=lambda each: (-counts[each], -last[each]))[:3]
        assert [tuple(each) for each in chosen.interests[user, : len(best)].tolist()] == best
        shares = torch.tensor([counts[each] / length for each in best])
        torch.testing.assert_close(chosen.log_probs[user, : len(best)].exp(), shares)
        assert (chosen.log_probs[user, len(best) :] == -torch.inf).all()
