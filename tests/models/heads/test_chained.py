"""Chained heads against the chain rule written out over all tuples, and against independent heads."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import log_softmax, normalize, silu

from trec_semid.core.errors import ConfigError
from trec_semid.layers.tuple_trie import TupleTrie
from trec_semid.models.heads.beams import Beams
from trec_semid.models.heads.chained import ChainedHeads
from trec_semid.models.heads.independent import IndependentHeads
from trec_semid.search.beam import beam_search

POSITIONS, CODES, DIM, USERS = 4, 3, 6, 5
TUPLES = torch.tensor(list(itertools.product(range(CODES), repeat=POSITIONS)))


def draw(num_facets: int) -> tuple[ChainedHeads, torch.Tensor, torch.Tensor]:
    torch.manual_seed(num_facets)
    heads = ChainedHeads(POSITIONS, DIM, 0.3, num_facets=num_facets)
    for weight in heads.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return heads, torch.randn(USERS, DIM), torch.randn(POSITIONS, CODES, DIM)


def log_prob_by_hand(
    heads: ChainedHeads, state: torch.Tensor, tables: torch.Tensor, codes: list[int]
) -> torch.Tensor:
    """Return log p(codes | state), position by position as the class says it."""
    total = torch.zeros(())
    levels = POSITIONS // heads.num_facets
    for r, code in enumerate(codes):
        first = r - r % levels
        moved = state @ heads.weight[r] + heads.bias[r]
        if r > first and heads.prefix_weight is not None:
            rows = [tables[b, codes[b]] / tables[b, codes[b]].norm() for b in range(first, r)]
            moved = moved + math.sqrt(DIM) * sum(rows) @ heads.prefix_weight[r // levels, r % levels - 1]
        query = normalize(state + silu(moved), dim=0)
        cosines = torch.stack([query @ row / row.norm() for row in tables[r]])
        total = total + log_softmax(cosines / 0.3, dim=0)[code]
    return total


@pytest.mark.parametrize("num_facets", [1, 2, 4])
@torch.no_grad()
def test_probabilities_of_all_tuples_are_those_of_the_chain_rule_and_sum_up_to_one(num_facets):
    heads, states, tables = draw(num_facets)
    losses = heads.loss(states, tables, TUPLES.expand(USERS, -1, -1))
    by_hand = [[log_prob_by_hand(heads, u, tables, codes) for codes in TUPLES.tolist()] for u in states]
    torch.testing.assert_close(-POSITIONS * losses, torch.tensor(by_hand))
    torch.testing.assert_close((-POSITIONS * losses).exp().sum(1), torch.ones(USERS))


@pytest.mark.parametrize("num_facets", [1, 2, 4])
def test_a_beam_as_wide_as_there_are_tuples_finds_the_order_of_all(num_facets):
    heads, states, tables = draw(num_facets)
    width, trie = len(TUPLES), TupleTrie.build(TUPLES, (CODES,) * POSITIONS)
    beams = beam_search(trie, USERS, heads.next_log_probs(states, tables), width)
    with torch.no_grad():
        exact = -POSITIONS * heads.loss(states, tables, TUPLES.expand(USERS, -1, -1))
    best = exact.sort(dim=1, descending=True, stable=True)
    assert torch.equal(beams.codes, TUPLES[best.indices])
    torch.testing.assert_close(beams.scores, best.values)


def test_without_weights_of_the_prefix_they_are_independent_heads_and_learn_as_these_do():
    chained, states, tables = draw(1)
    torch.nn.init.zeros_(chained.prefix_weight)
    independent = IndependentHeads(POSITIONS, DIM, 0.3)
    independent.load_state_dict({"weight": chained.weight, "bias": chained.bias.unsqueeze(1)})
    targets = TUPLES[torch.tensor([[0, 4], [80, 7], [5, 5], [33, 61], [2, 9]])]
    targets[1, 1] = -1
    grads = []
    for heads in (chained, independent):
        rows = tables.clone().requires_grad_()
        loss = heads.loss(states, rows, targets)
        assert loss[1, 1] == 0
        loss.sum().backward()
        grads.append((loss, rows.grad, heads.weight.grad))
    torch.testing.assert_close(grads[0], grads[1])
    assert chained.prefix_weight.grad.abs().sum() > 0


def test_facets_of_one_level_are_independent_and_say_all_at_once():
    heads, states, tables = draw(POSITIONS)
    assert heads.is_independent
    assert heads.prefix_weight is None
    log_probs = heads.log_probs(states, tables)
    ask = heads.next_log_probs(states, tables)
    nothing = torch.zeros(USERS, 1, dtype=torch.int64)
    for position in range(POSITIONS):
        beams = Beams(nothing.new_zeros(USERS, 1, position), nothing, nothing.float(), nothing)
        torch.testing.assert_close(ask(position, beams), log_probs[:, position].unsqueeze(1))


def test_a_code_of_another_facet_changes_nothing_and_one_of_its_own_does():
    heads, states, tables = draw(2)
    ask = heads.next_log_probs(states, tables)
    nothing = torch.zeros(USERS, 2, dtype=torch.int64)

    def last(*codes: list[int]) -> torch.Tensor:
        rows = torch.tensor(codes).expand(USERS, 2, 3)
        return ask(3, Beams(rows, nothing, nothing.float(), nothing))

    torch.testing.assert_close(*last([0, 0, 1], [2, 1, 1]).unbind(1))
    first, second = last([0, 0, 1], [0, 0, 2]).unbind(1)
    assert (first - second).abs().amax(1).min() > 1e-3


def test_facets_have_one_length():
    with pytest.raises(ConfigError, match=r"4 codes make no 3 facets"):
        ChainedHeads(POSITIONS, DIM, 0.3, num_facets=3)


@pytest.mark.parametrize(("kind", "share"), [("independent", 0.25), ("chained", 0.5)])
def test_only_chained_heads_tell_which_codes_go_together(kind, share):
    """Half of the targets are (0, 0), half (1, 1): each code by itself is 0 or 1 as often."""
    torch.manual_seed(0)
    heads = IndependentHeads(2, DIM, 0.1) if kind == "independent" else ChainedHeads(2, DIM, 0.1)
    states, tables = torch.randn(1, DIM), torch.randn(2, 2, DIM)
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        heads.loss(states, tables, torch.tensor([[[0, 0], [1, 1]]])).sum().backward()
        optimizer.step()
    with torch.no_grad():
        pairs = torch.tensor([[[0, 0], [0, 1], [1, 0], [1, 1]]])
        probs = (-2 * heads.loss(states, tables, pairs)).exp()
    torch.testing.assert_close(
        probs, torch.tensor([[share, 0.5 - share, 0.5 - share, share]]), atol=0.01, rtol=0
    )
