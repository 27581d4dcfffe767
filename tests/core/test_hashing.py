import numpy as np
import pytest
import torch

from trec_semid.core.hashing import (
    exact_tuple_keys,
    hash_columns,
    splitmix64,
    splitmix64_tensor,
    tuple_keys,
    unsigned_remainder,
)

GOLDEN = 0x9E3779B97F4A7C15
FIRST_OF_SEED_1234567 = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]
"""Published outputs of the generator, whose n-th is the hash of seed + (n - 1) · golden ratio."""
FEW, MANY = (3, 4, 2), (3000,) * 6
"""Tuples that 64 bits number, and tuples that they do not."""


def states() -> list[int]:
    return [(1234567 + step * GOLDEN) % 2**64 for step in range(5)]


def test_hashes_are_the_published_outputs_of_splitmix64():
    assert splitmix64(np.array(states(), np.uint64)).tolist() == FIRST_OF_SEED_1234567


def test_torch_gives_the_bits_that_numpy_gives():
    numbers = np.random.default_rng(0).integers(0, 2**64 - 1, (50, 3), np.uint64, endpoint=True)
    found = splitmix64_tensor(torch.from_numpy(numbers.view(np.int64))).numpy().view(np.uint64)
    np.testing.assert_array_equal(found, splitmix64(numbers))


@pytest.mark.parametrize("divisor", [1, 7, 1000, 2**31 - 1])
def test_remainders_are_those_of_unsigned_numbers(divisor: int):
    numbers = np.array([0, 1, 2**63 - 1, 2**63, 2**64 - 1, *states()], np.uint64)
    found = unsigned_remainder(torch.from_numpy(numbers.view(np.int64)), divisor)
    assert found.tolist() == [number % divisor for number in numbers.tolist()]


def drawn_codes(sizes: tuple[int, ...]) -> np.ndarray:
    generator = np.random.default_rng(0)
    codes = np.stack([generator.integers(0, size + 1, 3000) for size in sizes], axis=1).astype(np.int32)
    codes[1000:1500] = codes[:500]
    return codes


@pytest.mark.parametrize("sizes", [FEW, MANY])
def test_keys_are_equal_exactly_where_tuples_are(sizes: tuple[int, ...]):
    codes = drawn_codes(sizes)
    tuples = [tuple(row) for row in codes.tolist()]
    for keys in (tuple_keys(codes, sizes), exact_tuple_keys(codes, sizes)):
        assert len(np.unique(keys)) == len(set(tuples))
        assert len(set(zip(tuples, keys.tolist(), strict=True))) == len(set(tuples))


@pytest.mark.parametrize("sizes", [FEW, MANY])
def test_keys_of_a_part_are_the_keys_of_the_whole(sizes: tuple[int, ...]):
    codes = drawn_codes(sizes)
    whole = tuple_keys(codes, sizes)
    np.testing.assert_array_equal(tuple_keys(codes[7:9], sizes), whole[7:9])
    np.testing.assert_array_equal(tuple_keys(codes.reshape(30, 100, -1), sizes).reshape(-1), whole)


def test_keys_that_fit_number_the_tuples():
    codes = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [3, 4, 2]])
    assert tuple_keys(codes, FEW).tolist() == [0, 1, 3, 15, 59]
    assert exact_tuple_keys(codes, FEW).tolist() == [0, 1, 3, 15, 59]


def test_rows_share_a_hash_only_with_rows_that_are_alike_also_over_blocks(monkeypatch: pytest.MonkeyPatch):
    generator = np.random.default_rng(1)
    columns = [generator.integers(-5, 5, 4000), generator.integers(0, 9, 4000).astype(np.int32)]
    hashes = hash_columns(columns)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    assert len(set(hashes.tolist())) == len(set(rows)) == len(set(zip(rows, hashes.tolist(), strict=True)))
    assert hash_columns(columns[::-1])[0] != hashes[0]
    monkeypatch.setattr("trec_semid.core.hashing._BLOCK_ROWS", 7)
    np.testing.assert_array_equal(hash_columns(columns), hashes)
