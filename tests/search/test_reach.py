"""Items that no list can hold are told from those that one can."""

import numpy as np
import pytest
import torch

from tests.ranks import run_ranks
from trec_semid.metrics.retrieval import best_places, shares_listed
from trec_semid.metrics.target_positions import UserItems
from trec_semid.models.retrieval_model import Queries
from trec_semid.runtime.ranks import process_group
from trec_semid.search import reach
from trec_semid.search.catalogue import Catalogue, stretch_of
from trec_semid.search.exact import ExactSearch
from trec_semid.search.reach import Missing, Scored, Shown, missed_items, reach_of, reached_from

N, DIM = 60, 4


@pytest.fixture(autouse=True)
def vectors_are_looked_at_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "_ITEMS_AT_ONCE", 7)


def catalogue(codes: bool = False) -> Catalogue:
    """Items of 12 directions, some of them of very many items, in any order."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.nn.functional.normalize(torch.randn(12, DIM, generator=generator), dim=1)
    chosen = torch.randint(0, 12, (N,), generator=generator).pow(2) % 12
    of_items = torch.randint(0, 2, (N, 3), generator=generator) if codes else None
    return Catalogue(N, 0, directions[chosen], of_items, torch.zeros(3, 3, DIM) if codes else None)


def hidden(items: Catalogue, penalties: torch.Tensor | None, lengths: list[int]) -> list[float]:
    """Return the shares that no list of each length can hold."""
    facts = reach_of(Scored((items,), penalties), "exact", Shown(lengths, 0, {}), names)
    return [facts.hidden(length) for length in lengths]


def names(rows: np.ndarray) -> list[str]:
    return [f"i{row}" for row in rows]


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
    assert hidden(items, penalties, [length]) == pytest.approx([1 - len(found) / N])


def test_items_of_one_vector_and_other_codes_do_not_hide_each_other():
    items = catalogue(codes=True)
    assert items.codes is not None
    assert items.vectors is not None
    pairs = {
        (*vector, *codes) for vector, codes in zip(items.vectors.tolist(), items.codes.tolist(), strict=True)
    }
    assert hidden(items, None, [1]) == pytest.approx([1 - len(pairs) / N])
    of_codes = items._replace(vectors=None)
    tuples = {tuple(codes) for codes in items.codes.tolist()}
    assert hidden(of_codes, None, [1]) == pytest.approx([1 - len(tuples) / N])


def on_ranks() -> list[float]:
    with process_group() as ranks:
        whole = catalogue()
        rows = stretch_of(ranks.rank, ranks.world_size, N)
        assert whole.vectors is not None
        own = Catalogue(N, rows.start, whole.vectors[rows], None, None, is_shared=True)
        return hidden(own, torch.arange(N).float(), [1, 3])


@pytest.mark.ranks
def test_ranks_that_hold_a_stretch_each_count_over_all_of_it():
    alone = hidden(catalogue(), torch.arange(N).float(), [1, 3])
    assert alone[0] > alone[1] > 0
    assert run_ranks(on_ranks, 2) == [alone, alone]


def test_numbers_alike_but_for_the_sign_of_zero_are_one_score():
    vectors = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, 2.0]])
    assert hidden(Catalogue(3, 0, vectors, None, None), None, [1]) == [1 / 3]


@pytest.mark.parametrize("pool", [0, 4])
def test_every_item_that_no_list_can_hold_is_counted_and_named_for_its_reason(pool: int):
    """Against a loop over items; a pool lets those behind move up as far as it goes."""
    rng = np.random.default_rng(pool)
    vectors, codes = rng.integers(0, 2, (N, 2)).astype(np.float32), rng.integers(0, 3, (N, 2))
    penalties, sizes = rng.integers(0, 3, N).astype(np.float32), (2, 2)
    items = Catalogue(N, 0, torch.from_numpy(vectors), torch.from_numpy(codes), torch.zeros(2, 3, 2))
    lengths = [1, 3]
    behind = [
        sum(
            (vectors[i] == vectors[j]).all()
            and (codes[i] == codes[j]).all()
            and (penalties[j], j) < (penalties[i], i)
            for j in range(N)
        )
        for i in range(N)
    ]
    flags = {length: rng.random(N) < 0.5 for length in lengths}
    facts = reach_of(
        Scored((items,), torch.from_numpy(penalties), sizes, pool),
        "exact",
        Shown(lengths, 7, {1: 0.5, 3: 0.75}),
        names,
        [Missing("missed", "index", flags), Missing("no_path", "index", {1: np.zeros(N, bool)})],
    )
    assert (facts.num_items, facts.num_users, facts.listed) == (N, 7, {1: 0.5, 3: 0.75})
    is_blank = [not vectors[i].any() and tuple(codes[i]) == sizes for i in range(N)]
    own = {
        reason: {
            length: [i for i in range(N) if behind[i] >= max(length, pool) and is_blank[i] == blank]
            for length in lengths
        }
        for reason, blank in (("duplicate", False), ("blank", True))
    }
    own["missed"] = {length: np.flatnonzero(flags[length]).tolist() for length in lengths}
    expected = {reason: rows for reason, rows in own.items() if any(rows.values())}
    assert {each.reason for each in facts.absent} == expected.keys()
    for each in facts.absent:
        rows = expected[each.reason]
        assert each.counts == {length: len(rows[length]) for length in lengths}
        assert list(each.examples) == names(np.array((rows[3] or rows[1])[:5], np.int64))
    assert facts == type(facts).model_validate_json(facts.model_dump_json())


def test_what_a_search_misses_is_what_exact_lists_have_and_its_own_lack():
    rng = np.random.default_rng(2)
    guessed, exact = (rng.permuted(np.tile(np.arange(12), (6, 1)), axis=1)[:, :4] for _ in range(2))
    guessed[2, 1:], exact[3] = -1, -1
    missed = missed_items(best_places(guessed, 12), best_places(exact, 12), [2, 4])
    shares = shares_listed(best_places(exact, 12), [2, 4])
    for length in (2, 4):
        has, lacks = set(exact[:, :length].flat) - {-1}, set(guessed[:, :length].flat)
        assert set(np.flatnonzero(missed[length])) == has - lacks
        assert shares[length] == len(has) / 12


def test_what_a_graph_can_walk_to_is_what_a_loop_walks_to():
    rng = np.random.default_rng(3)
    edges = np.where(rng.random((50, 3)) < 0.5, rng.integers(0, 50, (50, 3)), -1)
    starts = np.array([4, 9, 4])
    reached, ahead = set(), [4, 9]
    while ahead:
        item = ahead.pop()
        if item not in reached:
            reached.add(item)
            ahead += [int(each) for each in edges[item] if each >= 0]
    found = reached_from(starts, lambda rows: edges[rows].ravel(), 50)
    assert set(np.flatnonzero(found)) == reached
    assert 2 < len(reached) < 50
