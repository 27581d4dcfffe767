"""64-bit hashes of integers, and keys that are equal where tuples of integers are.

One mixing function serves all: the finaliser of splitmix64 (Steele, Lea and Flood, "Fast Splittable
Pseudorandom Number Generators", 2014), a bijection of 64-bit numbers under which one changed bit changes
half of all bits. It is there twice, as numpy has unsigned 64-bit integers and torch has not; both give the
same bits.

    z = x + 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) · 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) · 0x94D049BB133111EB
    splitmix64(x) = z ^ (z >> 31)                    all modulo 2^64

What is written with these (rows of prefix tables, in trained models) depends on every bit: never change them.

Legend: N numbers or tuples, R positions of a tuple.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor  # a second of start-up, which verbs that hash with numpy alone do not pay

Hashes = NDArray[np.uint64]
_ADDED, _FIRST_FACTOR, _SECOND_FACTOR = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BLOCK_ROWS = 1 << 14
"""Rows hashed at a time, so that what lies between input and hash stays in the processor's cache."""


def splitmix64(values: Hashes) -> Hashes:
    """Return the hash of each number: (...) uint64 to (...) uint64."""
    mixed = values + np.uint64(_ADDED)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(_FIRST_FACTOR)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(_SECOND_FACTOR)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def splitmix64_tensor(values: "Tensor") -> "Tensor":
    """Return the hash of each number: (...) int64 that holds the bits of unsigned numbers to the same.

    Sums and products of int64 wrap as unsigned ones do; shifts drop the sign (`_shifted`).
    """
    mixed = values + _signed(_ADDED)
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(_FIRST_FACTOR)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(_SECOND_FACTOR)
    return mixed ^ _shifted(mixed, 31)


def unsigned_remainder(values: "Tensor", divisor: int) -> "Tensor":
    """Return (...) u % divisor where (...) int64 `values` hold the bits of unsigned u.

    u = 2 (u >> 1) + (u & 1), and the shifted number fits into int64.
    """
    return (_shifted(values, 1) % divisor * 2 + (values & 1)) % divisor


def hash_columns(columns: Sequence[NDArray[Any]]) -> Hashes:
    """Return (N,) one hash a row of (N,) integer columns: rows that are alike share it.

    Two other rows share one by chance, with probability 2^-64.
    """
    hashes = np.zeros(len(columns[0]), np.uint64)
    for start in range(0, len(hashes), _BLOCK_ROWS):
        block = hashes[start : start + _BLOCK_ROWS]
        for column in columns:
            block += column[start : start + _BLOCK_ROWS].astype(np.int64).view(np.uint64)
            # Mixed after each column: a plain sum would not tell columns in another order apart.
            block[:] = splitmix64(block)
    return hashes


def tuple_keys(codes: NDArray[Any], sizes: Sequence[int]) -> Hashes:
    """Return a key of each tuple, equal where tuples are, in this call and in any other of these sizes.

    Where tuples can be numbered below 2^63 the key is that number, digit r in base sizes[r] + 1, and so
    exact; else it is a hash, where one in 2^64 pairs of different tuples is taken for equal.

    Args:
        codes: (N, R) or (..., R) integers from 0 to sizes[r], which is the 'missing' code.
        sizes: R codebook sizes.

    Returns:
        (N,) or (...) uint64.
    """
    is_exact = _num_tuples(sizes) < 2**63
    keys = np.zeros(codes.shape[:-1], np.uint64)
    for position, size in enumerate(sizes):
        digit = codes[..., position].astype(np.uint64)
        keys = keys * np.uint64(size + 1) + digit if is_exact else splitmix64(keys + digit)
    return keys


def exact_tuple_keys(codes: NDArray[Any], sizes: Sequence[int]) -> NDArray[np.int64]:
    """Return (N,) a key of each tuple that is equal where tuples are and nowhere else, within this call.

    Where numbers would pass 2^63 those so far are replaced by their place among the different ones.

    Args:
        codes: (N, R) integers from 0 to sizes[r].
        sizes: R codebook sizes.
    """
    keys, bound = np.zeros(len(codes), np.int64), 1
    for position, size in enumerate(sizes):
        if bound * (size + 1) >= 2**63:
            distinct, keys = np.unique(keys, return_inverse=True)
            bound = len(distinct)
        # `size + 1`, since the 'missing' code is a digit as well.
        keys = keys * (size + 1) + codes[:, position]
        bound *= size + 1
    return keys


def _num_tuples(sizes: Sequence[int]) -> float:
    return float(np.prod([float(size + 1) for size in sizes]))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _shifted(values: "Tensor", by: int) -> "Tensor":
    return (values >> by) & ((1 << (64 - by)) - 1)
