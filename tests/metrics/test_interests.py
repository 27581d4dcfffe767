"""Metrics of interests and lists against walking every user, pair and place in plain Python."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.errors import ShapeError
from trec_semid.metrics.interests import (
    interest_cosine,
    interest_overlap,
    list_distance,
    num_categories,
    own_interest_share,
    union_of_lists,
)

CUTOFFS = (1, 3, 5, 20)


def drawn_lists(seed: int) -> torch.Tensor:
    """Return (B, M, N) lists of different lengths, some of them empty."""
    rng = np.random.default_rng(seed)
    lists = np.full((4, 3, 6), -1)
    for user, interest in itertools.product(range(4), range(3)):
        length = rng.integers(0, 7)
        lists[user, interest, :length] = rng.choice(9, length, replace=False)
    return torch.from_numpy(lists)


def cosine(a, b) -> float:
    norms = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / norms if norms else 0.0


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_the_union_has_every_item_once_with_its_place_in_every_list(seed):
    lists = drawn_lists(seed)
    union = union_of_lists(lists)
    for user, of_user in enumerate(lists.tolist()):
        items = [item for item in union.items[user].tolist() if item >= 0]
        assert items == sorted({item for each in of_user for item in each if item >= 0})
        for at, item in enumerate(union.items[user].tolist()):
            expected = [each.index(item) if item in each and item >= 0 else 6 for each in of_user]
            assert union.places[user, at].tolist() == expected


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_overlap_is_the_mean_jaccard_index_of_pairs(seed):
    lists = drawn_lists(seed)
    overlaps = interest_overlap(union_of_lists(lists), CUTOFFS)
    for user, of_user in enumerate(lists.tolist()):
        for at, cutoff in enumerate(CUTOFFS):
            sets = [{item for item in each[:cutoff] if item >= 0} for each in of_user]
            pairs = [(a, b) for a, b in itertools.combinations(sets, 2) if a | b]
            expected = mean(len(a & b) / len(a | b) for a, b in pairs)
            assert float(overlaps[user, at]) == pytest.approx(expected, nan_ok=True)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_vectors_are_compared_as_pair_by_pair(seed):
    rng = np.random.default_rng(seed)
    interests, vectors = rng.normal(size=(4, 3, 5)), rng.normal(size=(4, 6, 5))
    exists, listed_by = rng.random((4, 3)) < 0.7, rng.integers(0, 3, (4, 6))
    for user, length in enumerate(rng.integers(0, 7, 4)):
        listed_by[user, length:] = -1
    tensors = [torch.from_numpy(part) for part in (vectors, interests, exists, listed_by)]
    shares = own_interest_share(*tensors, CUTOFFS)
    distances = list_distance(tensors[0], tensors[3] >= 0, CUTOFFS)
    cosines = interest_cosine(tensors[1], tensors[2])
    for user in range(4):
        live = np.flatnonzero(exists[user])
        pairs = itertools.combinations(live, 2)
        expected = mean(cosine(interests[user, a], interests[user, b]) for a, b in pairs)
        assert float(cosines[user]) == pytest.approx(expected, nan_ok=True)
        for at, cutoff in enumerate(CUTOFFS):
            listed = [place for place in range(min(cutoff, 6)) if listed_by[user, place] >= 0]
            pairs = itertools.combinations(listed, 2)
            expected = mean(1 - cosine(vectors[user, a], vectors[user, b]) for a, b in pairs)
            assert float(distances[user, at]) == pytest.approx(expected, nan_ok=True)
            if len(live):
                nearest = [
                    max(live, key=lambda m: cosine(interests[user, m], vectors[user, place]))
                    for place in listed
                ]
                own = [listed_by[user, place] == m for place, m in zip(listed, nearest, strict=True)]
                assert float(shares[user, at]) == pytest.approx(mean(own), nan_ok=True)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_categories_are_counted_once(seed):
    categories = np.random.default_rng(seed).integers(-1, 4, (3, 6, 2))
    counts = num_categories(torch.from_numpy(categories), CUTOFFS)
    for user, at in itertools.product(range(3), range(len(CUTOFFS))):
        assert counts[user, at] == len(set(categories[user, : CUTOFFS[at]].flatten()) - {-1})


def test_equal_interests_have_cosine_and_overlap_one_and_opposite_ones_none():
    one = torch.tensor([1.0, 2.0])
    interests = torch.stack([torch.stack([one, one]), torch.stack([one, -3 * one])])
    both = torch.ones(2, 2, dtype=torch.bool)
    assert interest_cosine(interests, both).tolist() == pytest.approx([1, -1])
    lists = torch.tensor([[[4, 2], [4, 2]], [[4, 2], [3, 1]]])
    assert interest_overlap(union_of_lists(lists), [2]).tolist() == [[1.0], [0.0]]
    unit = torch.eye(4).unsqueeze(0)  # four items at right angles
    assert list_distance(unit, torch.ones(1, 4, dtype=torch.bool), [2, 4]).tolist() == [[1.0, 1.0]]


def test_sizes_must_fit():
    with pytest.raises(ShapeError, match="exists"):
        interest_cosine(torch.zeros(2, 3, 4), torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ShapeError, match="vectors"):
        list_distance(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), [1])
