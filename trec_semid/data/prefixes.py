"""Prefix n-grams of semantic IDs: what residual codes mean, they mean after the codes before them.

Legend: N items, R positions, P prefix lengths.
"""

from collections.abc import Sequence

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from trec_semid.core.config import Config
from trec_semid.core.hashing import splitmix64_tensor, unsigned_remainder


class PrefixConfig(Config):
    """Hashed tables of the first codes of a semantic ID, beside one table a position."""

    lengths: tuple[PositiveInt, ...] = Field((2, 3), min_length=1)
    """Codes of each prefix; a table for each length."""
    num_rows: PositiveInt = 100_000
    """Most rows of each table. A length whose prefixes number less gets a row for each, without
    collisions; a longer one is hashed."""

    @field_validator("lengths")
    @classmethod
    def _rise(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if list(lengths) != sorted(set(lengths)):
            raise ValueError(f"lengths must rise, each named once (got {list(lengths)})")
        return lengths


def prefix_rows(sizes: Sequence[int], length: int, num_rows: int) -> int:
    """Return the rows of the table of one prefix length: every prefix, 'missing' codes included, or fewer."""
    possible = 1
    for size in sizes[:length]:
        possible *= size + 1
    return min(possible, num_rows)


def prefix_ids(codes: Tensor, sizes: Sequence[int], config: PrefixConfig) -> Tensor:
    """Return (N, P) int64: the row of each item's prefix in each length's table.

    Source: Singh et al., "Better Generalization with Semantic IDs: A Case Study in Ranking for
    Recommendations", RecSys 2024, prefix n-grams. A prefix's number is its codes read as digits, digit r in
    base sizes[r] + 1; where it passes `num_rows` it is mixed (splitmix64) and taken modulo `num_rows`.

    Args:
        codes: (N, R) integers; sizes[r] is the 'missing' code.
        sizes: K of each position.
        config: which prefixes.
    """
    ids_by_order: list[Tensor] = []
    for length in config.lengths:
        rows = prefix_rows(sizes, length, config.num_rows)
        key = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        is_hashed = rows == config.num_rows
        for position in range(length):
            digit = codes[:, position].long()
            key = (splitmix64_tensor(key) ^ digit) if is_hashed else key * (sizes[position] + 1) + digit
        ids_by_order.append(unsigned_remainder(splitmix64_tensor(key), rows) if is_hashed else key)
    return torch.stack(ids_by_order, dim=1)
