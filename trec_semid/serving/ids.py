"""Ids as callers bring them: past this point a wrong one is read as another row.

Legend: B rows, F features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trec_semid.checkpoints.manifest import FeatureFacts
from trec_semid.core.errors import DataError
from trec_semid.data.batches import Jagged

_INDICES = (torch.int32, torch.int64)
"""Others torch does not look rows up by, or takes for a mask, as uint8."""
_REMEDY = "Bring batches as training reads them, or ids built the same way"


def check_features(features: Jagged, expected: Sequence[FeatureFacts], bundle: str) -> int:
    """Check ids and lengths of a batch against the features of a bundle, and return B.

    Raises:
        DataError: other features, ids or lengths that are no whole numbers, lengths that do not fit the ids,
            or an id outside its table; names the feature, its row counted from 1, and the value.
    """
    names = tuple(feature.name for feature in expected)
    if tuple(features.keys) != names:
        told = f"Expected {', '.join(names)}, in this order"
        raise DataError(
            "features differ from the bundle's", file=bundle, value=list(features.keys), remedy=told
        )
    for what, numbers in (("values", features.values), ("lengths", features.lengths)):
        expect_whole_numbers(numbers, what, bundle)
    num_rows, left = divmod(len(features.lengths), max(len(names), 1))
    if left or bool((features.lengths < 0).any()) or int(features.lengths.sum()) != len(features.values):
        problem = (
            f"{len(features.lengths):,} lengths, {int(features.lengths.sum()):,} in all, do not cut "
            f"{len(features.values):,} ids of {len(names)} features into rows"
        )
        raise DataError(problem, file=bundle, field="lengths", remedy=_REMEDY)
    lengths = features.lengths.long().view(len(names), num_rows)
    parts = features.values.split(lengths.sum(1).tolist())
    for feature, ids, each in zip(expected, parts, lengths, strict=True):
        at = first_outside(ids, feature.num_rows)
        if at is not None:
            row = int(torch.searchsorted(each.cumsum(0), at, right=True)) + 1
            raise _outside(bundle, feature.name, row, int(ids[at]), feature.num_rows)
    return num_rows


def expect_whole_numbers(numbers: object, what: str, bundle: str) -> None:
    """Refuse anything but a flat tensor of whole numbers of 32 or 64 bits.

    Raises:
        DataError: names its type or shape.
    """
    remedy = "Bring a flat tensor of int32 or int64"
    problem = "not a list of whole numbers of 32 or 64 bits"
    if not isinstance(numbers, Tensor):
        kind = type(numbers).__name__
        raise DataError(problem, file=bundle, field=what, value=kind, remedy=remedy)
    if numbers.dtype not in _INDICES:
        raise DataError(problem, file=bundle, field=what, value=str(numbers.dtype), remedy=remedy)
    if numbers.dim() != 1:
        raise DataError(problem, file=bundle, field=what, value=tuple(numbers.shape), remedy=remedy)


def first_outside(ids: Tensor, num_rows: int) -> int | None:
    """Return where the first of (n,) ids outside 0..num_rows-1 is; None where there is none."""
    wrong = (ids < 0) | (ids >= num_rows)
    return int(wrong.nonzero()[0]) if bool(wrong.any()) else None


def check_rows(ids: Tensor, table: str, num_rows: int, bundle: str) -> None:
    """Check (n,) ids of one table.

    Raises:
        DataError: they are no whole numbers, or one is outside the table.
    """
    expect_whole_numbers(ids, table, bundle)
    at = first_outside(ids, num_rows)
    if at is not None:
        raise _outside(bundle, table, at + 1, int(ids[at]), num_rows)


def _outside(bundle: str, field: str, row: int, value: int, num_rows: int) -> DataError:
    remedy = f"Ids are 0 to {num_rows - 1:,}: of items and users as they were when the model was trained"
    return DataError("id outside its table", file=bundle, row=row, field=field, value=value, remedy=remedy)
