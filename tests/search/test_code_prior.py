"""Gains of naive Bayes, against sums by hand and against what is known where users tell nothing."""

import math

import pytest
import torch

from tests.catalogues import draw_catalogue
from trec_semid.layers.tuple_trie import TupleTrie
from trec_semid.models.heads.beams import parallel_heads
from trec_semid.search.beam import decode_items
from trec_semid.search.code_prior import CodePrior
from trec_semid.search.code_scores import CodeScores

SIZES, ITEMS = (2, 3, 4), 40
CATALOGUE = draw_catalogue(0, SIZES, ITEMS, num_tuples=15)
CODES, COUNTS = torch.from_numpy(CATALOGUE.codes), torch.arange(ITEMS) ** 2 % 23


@pytest.mark.parametrize("item_share", [0.0, 1.0, 2.5])
def test_gains_are_those_of_the_definition_and_add_up_along_the_trie(item_share: float):
    prior, trie = CodePrior(COUNTS, item_share), TupleTrie.build(CODES, SIZES)
    events = (COUNTS + 1).tolist()
    expected = [
        item_share * math.log(events[item] / sum(events))
        - sum(
            math.log(
                sum(n for row, n in zip(CATALOGUE.tuples, events, strict=True) if row[r] == code)
                / sum(events)
            )
            for r, code in enumerate(own)
        )
        for item, own in enumerate(CATALOGUE.tuples)
    ]
    torch.testing.assert_close(prior.of_items(CODES), torch.tensor(expected))
    nodes = prior.of_nodes(trie)
    along = nodes[-1][trie.place_of].clone()
    for level, gains in enumerate(nodes[:-1]):
        own = torch.searchsorted(trie.starts[level], trie.place_of, right=True) - 1
        along += gains[own]
    torch.testing.assert_close(along, torch.tensor(expected))


def test_a_user_of_whom_codes_tell_nothing_is_shown_what_is_popular():
    events = (COUNTS + 1).double()
    heads = [
        torch.zeros(1, size + 1).index_add(1, CODES[:, r].long(), (events / events.sum()).float()[None]).log()
        for r, size in enumerate(SIZES)
    ]
    prior, trie = CodePrior(COUNTS, 1.0), TupleTrie.build(CODES, SIZES)
    table = torch.stack([torch.nn.functional.pad(head, (0, 5 - head.shape[1])) for head in heads], 1)
    scores = CodeScores(table, CODES).contiguous(slice(0, ITEMS)) + prior.of_items(CODES)
    torch.testing.assert_close(scores[0], (events / events.sum()).log().float())
    found = decode_items(
        trie, 1, parallel_heads(heads), width=trie.num_tuples, num_items=ITEMS, gains=prior.of_nodes(trie)
    )
    torch.testing.assert_close(found.scores[0], scores[0].sort(descending=True).values)
    assert COUNTS[found.items[0]].tolist() == sorted(COUNTS.tolist(), reverse=True)
