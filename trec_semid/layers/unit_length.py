"""Directions: vectors at unit length, whatever their scale, and whether they tell items apart.

Legend: B vectors, D width.
"""

import torch
from torch import Tensor

SAME_DIRECTION = 1e-6
"""Unit vectors whose numbers differ by a smaller share of the largest one differ by rounding of float32."""
_SAME_IN_HALF = 4e-3
"""The same for numbers that were stored as float16."""
_SHORT, _LONG = 2.0**-40, 2.0**40
"""Between them, squares that float32 loses are too small to count."""
_BIAS, _MANTISSA_BITS = 127, 23
"""Of float32."""


def unit_length(vectors: Tensor) -> Tensor:
    """Return v / |v| (..., D) of float32 rows; rows of zeros stay zeros.

    Where a row is very short or long, all are first multiplied by powers of two that take their largest
    numbers into [1/2, 1): then squares of rows of any length, subnormal ones too, neither overflow nor
    vanish. Such a product is exact, so other rows come out the same, to the last bit, with it and without.
    """
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    if ((lengths < _SHORT) | (lengths > _LONG)).any():
        vectors = _scaled(vectors)
        lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(lengths > 0, lengths, 1.0)


def _scaled(vectors: Tensor) -> Tensor:
    _, exponents = torch.frexp(vectors.abs().amax(-1, keepdim=True))
    half = torch.div(-exponents, 2, rounding_mode="floor")
    # In two steps: 2^148, which takes the smallest number to 1/2, is beyond float32.
    return vectors * _power_of_two(half) * _power_of_two(-exponents - half)


def off_line(units: Tensor, first: Tensor) -> Tensor:
    """Return (B,) the largest difference of unit vectors (B, D) to `first`, one of them, or its opposite.

    It is a share of the largest number of `first`, as rounding is: numbers at unit length are the smaller
    the wider vectors are. Near 0 everywhere, the vectors are multiples of one: at unit length they tell at
    most two groups apart.
    """
    same, opposite = (units - first).abs().amax(-1), (units + first).abs().amax(-1)
    largest = first.abs().max()
    return torch.minimum(same, opposite) / torch.where(largest > 0, largest, 1.0)


def direction_tolerance(*, is_half: bool) -> float:
    """Return how far vectors lie off a line by rounding alone; more where they were stored as float16."""
    return _SAME_IN_HALF if is_half else SAME_DIRECTION


def _power_of_two(exponents: Tensor) -> Tensor:
    """Return 2^k exactly, for k in -126..127; library powers may be off by a bit."""
    return ((exponents.int() + _BIAS) << _MANTISSA_BITS).view(torch.float32)
