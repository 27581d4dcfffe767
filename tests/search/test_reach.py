"""Items that no list can hold are told from those that one can."""

import numpy as np
import pytest
import torch

from tests.ranks import run_ranks
from trec_semid.metrics.target_positions import UserItems
from trec_semid.models.retrieval_model import Queries
from trec_semid.runtime.ranks import process_group
from trec_semid.search.catalogue import Catalogue, stretch_of
from trec_semid.search.exact import ExactSearch
from trec_semid.search.reach import hidden_items

N, DIM = 60, 4


def catalogue(codes: bool = False) -> Catalogue:
    """Items of 12 directions, some of them of very many items, in any order."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.nn.functional.normalize(torch.randn(12, DIM, generator=generator), dim=1)
    chosen = torch.randint(0, 12, (N,), generator=generator).pow(2) % 12
    of_items = torch.randint(0, 2, (N, 3), generator=generator) if codes else None
    return Catalogue(N, 0, directions[chosen], of_items, torch.zeros(3, 3, DIM) if codes else None)


def nobody(num_users: int) -> UserItems:
    none = torch.zeros(0, dtype=torch.int64)
    zeros = torch.zeros(num_users, dtype=torch.int64)
    return UserItems(none, zeros, none, zeros)


def listed(items: Catalogue, penalties: torch.Tensor | None, length: int) -> set[int]:
    """Everything that exact lists hold of users who ask by an item's own vector, or by any other."""
    assert items.vectors is not None
    others = torch.randn(200, DIM, generator=torch.Generator().manual_seed(6))
    queries = Queries(torch.cat([items.vectors, others]), None)
    lists = ExactSearch([items], penalties).top_items([queries], nobody(N + 200), length)
    return {int(item) for item in lists.items.flatten()}


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 20])
@pytest.mark.parametrize("off", [False, True])
def test_hidden_are_those_that_stand_behind_as_many_of_their_own_direction(length: int, *, off: bool):
    """Who asks by a unit vector has all items of that direction first: nothing else can be listed."""
    items = catalogue()
    penalties = torch.arange(N).flip(0).remainder(7) * 1e-4 if off else None
    found = listed(items, penalties, length)
    assert hidden_items(items, penalties, [length])[f"hidden@{length}"] == pytest.approx(1 - len(found) / N)


def test_items_of_one_vector_and_other_codes_do_not_hide_each_other():
    items = catalogue(codes=True)
    assert items.codes is not None
    assert items.vectors is not None
    pairs = {
        (*vector, *codes) for vector, codes in zip(items.vectors.tolist(), items.codes.tolist(), strict=True)
    }
    assert hidden_items(items, None, [1])["hidden@1"] == pytest.approx(1 - len(pairs) / N)
    of_codes = items._replace(vectors=None)
    tuples = {tuple(codes) for codes in items.codes.tolist()}
    assert hidden_items(of_codes, None, [1])["hidden@1"] == pytest.approx(1 - len(tuples) / N)


def on_ranks() -> dict[str, float]:
    with process_group() as ranks:
        whole = catalogue()
        rows = stretch_of(ranks.rank, ranks.world_size, N)
        assert whole.vectors is not None
        own = Catalogue(N, rows.start, whole.vectors[rows], None, None, is_shared=True)
        return hidden_items(own, torch.arange(N).float(), [1, 3])


@pytest.mark.ranks
def test_ranks_that_hold_a_stretch_each_count_over_all_of_it():
    alone = hidden_items(catalogue(), torch.arange(N).float(), [1, 3])
    assert alone["hidden@1"] > alone["hidden@3"] > 0
    assert run_ranks(on_ranks, 2) == [alone, alone]


def test_numbers_alike_but_for_the_sign_of_zero_are_one_score():
    vectors = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, 2.0]])
    assert hidden_items(Catalogue(3, 0, vectors, None, None), None, [1]) == {"hidden@1": np.float64(1 / 3)}
