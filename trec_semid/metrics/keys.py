"""Rows as sortable integers: user, score and label in one uint64, so that one sort orders everything.

    bits 63..33  user (31 bits)
    bits 32..1   score, as a uint32 with the order of the float it came from
    bit  0       label

Sorted this way the rows of a user lie together, by score, and within a tie negatives come before
positives: what AUC needs is then a matter of positions. numpy sorts 64-bit integers with SIMD.
Legend: N rows, U users.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from trec_semid.core.arrays import Array, Flags, Float32s, Ints
from trec_semid.core.errors import DataError, ShapeError

Keys = NDArray[np.uint64]
T = TypeVar("T")
MAX_USERS = 1 << 31
USER_SHIFT = np.uint64(33)
_CHUNK_ROWS = 1 << 16
"""Rows packed at a time, so that what lies between input and key stays in the processor's cache."""


def check_scores(scores: ArrayLike) -> Array:
    """Return scores as a (N,) float32 or float64 array.

    Raises:
        ShapeError: not one-dimensional.
        DataError: a score is NaN, which has no place in an order.
    """
    array = np.asarray(scores)
    if array.ndim != 1:
        raise ShapeError(f"scores: wrong shape (got {array.shape}, expected (N,)).")
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
    if np.isnan(array).any():
        row = int(np.flatnonzero(np.isnan(array))[0])
        remedy = "A model that gives NaN has diverged: lower the learning rate or look at its inputs"
        raise DataError("score has no order", row=row + 1, field="score", value=float("nan"), remedy=remedy)
    return array


def check_float32(scores: ArrayLike) -> Float32s:
    """Return scores as a (N,) float32 array; accumulators compare these across updates and ranks.

    Raises:
        ShapeError: not one-dimensional.
        DataError: a score is NaN, or of a type that float32 does not hold exactly.
    """
    checked = check_scores(scores)
    if checked.dtype != np.float32:
        remedy = "Cast the model's scores with .astype(numpy.float32)"
        kind = str(np.asarray(scores).dtype)
        raise DataError("scores must be float32 here", field="score", value=kind, remedy=remedy)
    return checked


def check_labels(labels: ArrayLike, num_rows: int) -> Flags:
    """Return labels as a (num_rows,) bool array.

    Raises:
        ShapeError: another number of labels than rows.
        DataError: a label is neither 0 nor 1.
    """
    array = np.asarray(labels)
    if array.shape != (num_rows,):
        raise ShapeError(f"labels: wrong shape (got {array.shape}, expected ({num_rows},)).")
    if array.dtype == np.bool_:
        return array
    truth = array == 1
    if not (truth | (array == 0)).all():
        row = int(np.flatnonzero(~(truth | (array == 0)))[0])
        remedy = "Set a label rule that gives two classes"
        raise DataError(
            "label is not 0 or 1", row=row + 1, field="label", value=array[row].item(), remedy=remedy
        )
    return truth


def check_users(users: ArrayLike, num_rows: int) -> Ints:
    """Return user rows as a (num_rows,) array of integers below 2^31.

    Raises:
        ShapeError: another number of users than rows.
        DataError: a user outside 0 .. 2^31 - 1.
    """
    array = np.asarray(users)
    if array.shape != (num_rows,):
        raise ShapeError(f"users: wrong shape (got {array.shape}, expected ({num_rows},)).")
    if not _fits(array):
        integers = np.issubdtype(array.dtype, np.integer)
        at = int(np.flatnonzero((array < 0) | (array >= MAX_USERS))[0]) if integers else None
        value = array[at].item() if at is not None else str(array.dtype)
        row = None if at is None else at + 1
        remedy = "Give dense user rows: integers from 0, below 2^31"
        raise DataError("user does not fit a packed row", row=row, field="user", value=value, remedy=remedy)
    return array


def dense_users(users: ArrayLike, num_rows: int) -> tuple[Array, Array | None]:
    """Return (N,) users below 2^31, and (U,) the users those stand for where they had to be renumbered.

    Raises:
        ShapeError: another number of users than rows.
    """
    array = np.asarray(users)
    if array.shape == (num_rows,) and not _fits(array):
        names, dense = np.unique(array, return_inverse=True)
        return dense, names
    return check_users(array, num_rows), None


def pack(scores: Array, labels: Flags, users: Array | None = None) -> Keys:
    """Pack checked rows into (N,) keys, in the order given; without users all belong to user 0.

    float32 scores are compared as they are (-0.0 equals 0.0). Other scores are replaced by their
    rank among the distinct scores of this call, which keeps order and ties exactly, so keys of two
    calls are comparable for float32 scores only.
    """
    if scores.dtype != np.float32:
        ordered = np.unique(scores, return_inverse=True)[1].astype(np.uint32)
    else:
        ordered = None
    keys = np.empty(len(scores), np.uint64)

    def pack_chunk(start: int) -> None:
        """Write the keys of `_CHUNK_ROWS` rows from `start` on."""
        part = slice(start, start + _CHUNK_ROWS)
        order = _ordered_bits(scores[part]) if ordered is None else ordered[part]
        key = order.astype(np.uint64)
        key <<= np.uint64(1)
        key |= labels[part]
        if users is not None:
            key |= users[part].astype(np.uint64) << USER_SHIFT
        keys[part] = key

    in_threads(pack_chunk, range(0, len(scores), _CHUNK_ROWS))
    return keys


def sort_keys(keys: Keys) -> None:
    """Sort in place: split at quantiles, then the parts on as many threads as torch uses."""
    num_parts = min(_num_threads(), max(1, len(keys) >> 18))
    cuts = [len(keys) * part // num_parts for part in range(num_parts + 1)]
    if num_parts > 1:
        keys.partition(cuts[1:-1])
    in_threads(lambda part: keys[cuts[part] : cuts[part + 1]].sort(), range(num_parts))


def in_threads(work: Callable[[int], T], items: Sequence[int]) -> list[T]:
    """Return `work(item)` for every item, on as many threads as torch uses; numpy frees the GIL."""
    if _num_threads() == 1 or len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(_num_threads()) as pool:
        return list(pool.map(work, items))


def _num_threads() -> int:
    return min(torch.get_num_threads(), 8)  # beyond that memory is the limit


def _fits(users: Array) -> bool:
    if not np.issubdtype(users.dtype, np.integer):
        return False
    return not len(users) or (users.min() >= 0 and users.max() < MAX_USERS)


def _ordered_bits(scores: Float32s) -> NDArray[np.uint32]:
    bits = (scores + np.float32(0)).view(np.uint32)  # adding 0 turns -0.0 into 0.0
    # Sign bit set: flip every bit, so that larger magnitudes come first. Else: set the sign bit.
    return bits ^ ((bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31))
