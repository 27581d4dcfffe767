import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.metrics.codes import code_usage, count_collisions, neighbour_agreement


def test_usage_counts_present_items_only():
    codes = np.array([[0, 3], [0, 3], [1, 0], [2, 1]])
    first, second = code_usage(codes, (4, 3))
    assert first.counts.tolist() == [2, 1, 1, 0]
    assert (first.used, first.missing, first.utilisation) == (3, 0, 0.75)
    assert second.counts.tolist() == [1, 1, 0]
    assert second.missing == 2
    assert first.entropy == pytest.approx(-(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)))
    assert second.perplexity == pytest.approx(2.0)


def test_entropy_of_a_uniform_codebook_is_ln_k_and_of_one_code_zero():
    codes = np.stack([np.arange(100) % 20, np.zeros(100, int)], axis=1)
    uniform, single = code_usage(codes, (20, 20))
    assert uniform.entropy == pytest.approx(math.log(20))
    assert single.entropy == 0
    assert single.perplexity == 1


def test_codebook_that_no_item_reads_has_no_entropy():
    (usage,) = code_usage(np.full((5, 1), 8), (8,))
    assert (usage.missing, usage.entropy, usage.utilisation) == (5, 0, 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=60))
def test_collisions_equal_a_count_of_tuples(tuples):
    counts = Counter(tuples)
    groups = [size for size in counts.values() if size > 1]
    collisions = count_collisions(np.array(tuples), (2, 2, 2))
    assert collisions.unique_tuples == len(counts)
    assert (collisions.groups, collisions.items_in_groups) == (len(groups), sum(groups))
    assert collisions.largest_group == max(counts.values())


def test_collisions_are_exact_where_tuples_outgrow_64_bits():
    rng = np.random.default_rng(0)
    size = 60_000
    codes = rng.integers(size, size=(500, 12))
    codes[100:200] = codes[:100]
    codes[200:300] = codes[:100]
    codes[200:300, 11] = (codes[200:300, 11] + 1) % size  # differ in the last position only
    collisions = count_collisions(codes, (size,) * 12)
    assert collisions.unique_tuples == 400
    assert (collisions.groups, collisions.items_in_groups, collisions.largest_group) == (100, 200, 2)


def brute_agreement(vectors, codes, sizes, k):
    num_items = len(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def compare(a, b):
        both = [r for r, size in enumerate(sizes) if codes[a, r] < size and codes[b, r] < size]
        shared = sum(codes[a, r] == codes[b, r] for r in both)
        return shared, shared / max(1, len(both))

    near = []
    for a in range(num_items):
        others = sorted((b for b in range(num_items) if b != a), key=lambda b: -float(unit[a] @ unit[b]))
        near += [compare(a, b)[1] for b in others[:k]]
    pairs = [(*compare(a, b), float(unit[a] @ unit[b])) for a, b in combinations(range(num_items), 2)]
    by_shared = {
        s: [cosine for shared, _, cosine in pairs if shared == s] for s in {shared for shared, _, _ in pairs}
    }
    return np.mean(near), np.mean([share for _, share, _ in pairs]), by_shared


def test_neighbour_agreement_equals_brute_force():
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(40, 5)).astype(np.float32)
    codes = rng.integers(0, 4, size=(40, 3))  # code 3 is 'missing'
    found = neighbour_agreement(vectors, codes, (3, 3, 3), k=6)
    near, pairs, by_shared = brute_agreement(vectors, codes, (3, 3, 3), 6)
    assert found.overlap_of_neighbours == pytest.approx(near)
    assert found.overlap_of_pairs == pytest.approx(pairs)
    assert {row.shared_codes: row.pairs for row in found.by_shared_codes} == {
        s: 2 * len(cosines) for s, cosines in by_shared.items()
    }
    for row in found.by_shared_codes:
        assert row.mean_cosine == pytest.approx(np.mean(by_shared[row.shared_codes]), abs=1e-6)


def test_sampled_anchors_estimate_the_whole():
    rng = np.random.default_rng(5)
    clusters = rng.integers(6, size=900)
    vectors = (rng.normal(size=(6, 8))[clusters] + 0.3 * rng.normal(size=(900, 8))).astype(np.float32)
    codes = np.stack([clusters, rng.integers(6, size=900)], axis=1)
    whole = neighbour_agreement(vectors, codes, (6, 6))
    part = neighbour_agreement(vectors, codes, (6, 6), max_anchors=300, seed=1)
    assert part.overlap_of_neighbours == pytest.approx(whole.overlap_of_neighbours, abs=0.02)
    assert whole.overlap_of_neighbours > 0.5
    assert whole.overlap_of_pairs < 0.25
    assert part == neighbour_agreement(vectors, codes, (6, 6), max_anchors=300, seed=1)


def test_items_without_content_are_left_out():
    rng = np.random.default_rng(6)
    vectors = rng.normal(size=(30, 5)).astype(np.float32)
    codes = rng.integers(0, 3, size=(30, 2))
    empty = np.concatenate([vectors, np.zeros((4, 5), np.float32)])
    with_empty = neighbour_agreement(empty, np.concatenate([codes, codes[:4]]), (3, 3), k=5)
    assert with_empty == neighbour_agreement(vectors, codes, (3, 3), k=5)


def test_one_item_has_no_neighbours():
    found = neighbour_agreement(np.ones((1, 4), np.float32), np.zeros((1, 2), int), (3, 3))
    assert (found.k, found.by_shared_codes) == (0, [])
