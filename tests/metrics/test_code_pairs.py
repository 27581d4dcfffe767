import itertools
import math
from collections import Counter

import numpy as np
import pytest

from trec_semid.metrics.codes import code_pairs


def entropy(values: list[object]) -> float:
    return -sum(n / len(values) * math.log(n / len(values)) for n in Counter(values).values())


def test_what_is_shared_is_mutual_information_less_that_of_all_deals_of_the_codes():
    a, b = [0, 0, 1, 1, 2, 2, 3], [0, 0, 1, 1, 1, 3, 3]
    missing = [4, 1]  # an item without the first code takes no part
    codes = np.array([*zip(a, b, strict=True), missing])
    joint, mutual = entropy(list(zip(a, b, strict=True))), entropy(a) + entropy(b)
    by_chance = np.mean([entropy(list(zip(deal, b, strict=True))) for deal in itertools.permutations(a)])
    expected = (by_chance - joint) / (min(entropy(a), entropy(b)) - (mutual - by_chance))
    found = [code_pairs(codes, (4, 4), seed=seed)[0] for seed in range(400)]
    assert found[0].joint_entropy == pytest.approx(joint)
    # The quotient of draws has the quotient of means in the middle; three draws of seven items scatter.
    assert np.median([pair.shared for pair in found]) == pytest.approx(expected, abs=0.05)


def test_equal_positions_share_everything_and_independent_ones_nothing_however_few_the_items():
    rng = np.random.default_rng(0)
    a, b = rng.integers(64, size=(2, 1500))
    renamed = (a * 7 + 3) % 64
    pairs = {(p.left, p.right): p for p in code_pairs(np.stack([a, renamed, b], 1), (64, 64, 64), seed=0)}
    assert pairs[0, 1].shared == pytest.approx(1)
    assert abs(pairs[0, 2].shared) < 0.01
    assert pairs[0, 1].joint_entropy == pytest.approx(entropy(a.tolist()))


def test_constant_positions_and_no_items_share_nothing():
    codes = np.zeros((20, 2), np.int64)
    assert [pair[2:] for pair in code_pairs(codes, (3, 3), seed=0)] == [(0.0, 0.0)]
    assert [pair[2:] for pair in code_pairs(codes + 3, (3, 3), seed=0)] == [(0.0, 0.0)]
    assert code_pairs(codes[:, :1], (3,), seed=0) == []
