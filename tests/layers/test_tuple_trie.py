from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.catalogues import Catalogue, catalogues, draw_catalogue
from trec_semid.core.errors import DataError, ShapeError
from trec_semid.layers.tuple_trie import TupleTrie


def prefixes_by_hand(catalogue: Catalogue, length: int) -> list[tuple[int, ...]]:
    return sorted({found[:length] for found in catalogue.tuples})


def listed(
    trie: TupleTrie, level: int, parents: list[list[int]], counts: Any = None, room: int = 0
) -> list[list[tuple[int, int]]]:
    nodes = torch.tensor(parents)
    asked = trie.count_children(level, nodes) if counts is None else torch.tensor(counts)
    children = trie.children(level, nodes, asked, int(asked.sum(1).max()) + room)
    found = []
    for row in range(len(nodes)):
        exists = children.exists[row]
        pairs = zip(children.parents[row][exists].tolist(), children.nodes[row][exists].tolist(), strict=True)
        found.append(list(pairs))
        assert (children.nodes[row][~exists] == 0).all()
    return found


@given(catalogues)
def test_every_level_holds_the_distinct_prefixes_in_lexicographic_order(catalogue: Catalogue):
    trie = TupleTrie.build(catalogue.codes, catalogue.sizes)
    known, by_node = [()], [()]
    for level in range(trie.num_positions):
        pairs = listed(trie, level, [list(range(len(known)))], room=3)[0]
        by_node = [(*known[parent], int(trie.codes[level][node])) for parent, node in pairs]
        assert [node for _, node in pairs] == list(range(len(pairs)))
        assert by_node == prefixes_by_hand(catalogue, level + 1)
        assert trie.highest[level] == catalogue.codes[:, level].max()
        known = by_node
    assert trie.num_tuples == len(set(catalogue.tuples))


@given(catalogues)
def test_a_leaf_holds_the_items_of_its_tuple_by_ascending_row(catalogue: Catalogue):
    trie = TupleTrie.build(catalogue.codes, catalogue.sizes)
    leaves = prefixes_by_hand(catalogue, trie.num_positions)
    owned = [[] for _ in leaves]
    for leaf, place in listed(trie, trie.num_positions, [list(range(len(leaves)))])[0]:
        owned[leaf].append(int(trie.items[place]))
    assert owned == [[item for item, own in enumerate(catalogue.tuples) if own == leaf] for leaf in leaves]


@given(catalogues, st.data())
def test_children_of_any_parents_are_cut_at_the_asked_counts(catalogue: Catalogue, data: Any):
    trie = TupleTrie.build(catalogue.codes, catalogue.sizes)
    level = data.draw(st.integers(1, trie.num_positions))
    node = st.integers(0, len(trie.codes[level - 1]) - 1)
    parents = data.draw(st.lists(st.lists(node, min_size=3, max_size=3), min_size=1, max_size=4))
    whole = listed(trie, level, parents)
    counts = [
        [data.draw(st.integers(0, sum(owner == place for owner, _ in row))) for place in range(3)]
        for row in whole
    ]
    wanted = []
    for row, limits in zip(whole, counts, strict=True):
        own = [[pair for pair in row if pair[0] == place][:limit] for place, limit in enumerate(limits)]
        wanted.append([pair for pairs in own for pair in pairs])
    assert listed(trie, level, parents, counts, room=1) == wanted


def test_memory_is_a_few_integers_for_each_code():
    catalogue = draw_catalogue(0, (50, 50, 50, 50), 2000)
    trie = TupleTrie.build(catalogue.codes, catalogue.sizes)
    parts = [*trie.codes, *trie.offsets]
    assert all(part.dtype == torch.int32 for part in parts)
    assert sum(map(len, parts)) <= 2 * catalogue.codes.size + len(parts) + 2000


def test_codebooks_beyond_sixteen_bits_are_sorted_alike():
    codes = np.array([[70_000, 1], [4_464, 0], [70_000, 0], [65_536, 2]])
    trie = TupleTrie.build(torch.from_numpy(codes), (80_000, 2))
    assert trie.items.tolist() == [1, 3, 2, 0]
    assert trie.codes[0].tolist() == [4_464, 65_536, 70_000]


def test_it_moves_to_a_device_whole():
    trie = TupleTrie.build(np.array([[0, 1], [0, 2]]), (1, 2)).to("meta")
    assert trie.device.type == "meta"
    assert {part.device.type for part in (*trie.codes, *trie.offsets)} == {"meta"}
    assert (trie.num_items, trie.num_tuples, trie.highest) == (2, 2, (0, 2))


@pytest.mark.parametrize(("code", "position"), [(-1, 0), (4, 0), (7, 1)])
def test_a_code_outside_its_codebook_is_named(code: Any, position: Any):
    codes = np.ones((3, 2), np.int32)
    codes[2, position] = code
    with pytest.raises(
        DataError, match=f"row 3, field 'codes'.*got {code}.*Position {position} knows codes 0"
    ):
        TupleTrie.build(codes, (3, 6))


def test_an_empty_catalogue_is_refused_with_a_remedy():
    with pytest.raises(DataError, match=r"no items.*Tokenize a dataset that has items"):
        TupleTrie.build(np.empty((0, 2), np.int32), (3, 6))


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 3)])
def test_tuples_of_another_length_than_the_codebooks_are_refused(shape: Any):
    with pytest.raises(ShapeError, match="R = 2"):
        TupleTrie.build(np.zeros(shape, np.int32), (3, 6))


def test_a_map_without_positions_is_refused():
    with pytest.raises(ShapeError):
        TupleTrie.build(np.zeros((3, 0), np.int32), ())


@given(catalogues)
def test_its_arrays_make_it_again(catalogue: Catalogue):
    trie = TupleTrie.build(catalogue.codes, catalogue.sizes)
    again = TupleTrie.of_arrays(trie.arrays(), catalogue.sizes, len(catalogue.codes))
    assert (again.sizes, again.highest) == (trie.sizes, trie.highest)
    for name in ("codes", "offsets", "starts"):
        for one, other in zip(getattr(trie, name), getattr(again, name), strict=True):
            assert torch.equal(one, other)
    assert torch.equal(again.items, trie.items)
    assert torch.equal(again.place_of, trie.place_of)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("items", lambda values: values[:-1], "other names, types or sizes"),
        ("items", lambda values: values.astype(np.int32), "other names, types or sizes"),
        ("items", lambda values: values + 1, "not each item once"),
        ("items", lambda values: np.full_like(values, -1), "not each item once"),
        ("items", np.zeros_like, "not each item once"),
        ("place_of", lambda values: values[::-1].copy(), "not each item once"),
        ("codes-1", lambda values: values + 2**20, "codes-1 are outside of their codebook"),
        ("codes-0", lambda values: values - 2**20, "codes-0 are outside of their codebook"),
        ("highest", lambda values: values + 1, "outside of their codebook"),
        ("offsets-1", lambda values: values + 1, "offsets-1 does not divide"),
        ("offsets-2", lambda values: values[::-1].copy(), "offsets-2 does not divide"),
        ("starts-0", np.zeros_like, "starts-0 does not divide 50"),
        ("another", lambda values: values, "other names, types or sizes"),
    ],
)
def test_arrays_that_are_no_trie_are_refused(name: Any, change: Any, told: Any):
    codes = np.random.default_rng(0).integers(0, 4, (50, 2))
    arrays = TupleTrie.build(codes, (4, 4)).arrays()
    changed = {**arrays, name: change(arrays.get(name, arrays["items"]))}
    with pytest.raises(DataError, match=rf"no trie of 50 items: .*{told}"):
        TupleTrie.of_arrays(changed, (4, 4), 50)
