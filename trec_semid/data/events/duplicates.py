"""Events that say the same thing twice."""

from typing import Literal

import numpy as np

from trec_semid.core.arrays import Array, Flags
from trec_semid.core.errors import DataError
from trec_semid.core.hashing import hash_columns
from trec_semid.data.raw.events import RawEvents

DuplicatePolicy = Literal["keep", "drop", "refuse"]


def find_duplicates(events: RawEvents) -> Flags:
    """Return (n,) which events repeat an earlier row: same user, item, time, behaviour and rating.

    Where there are no times, the position stands for them. Hashes find the few rows to compare.

    Memory: 16 bytes an event.
    """
    columns = _columns(events)
    hashes = hash_columns(columns)
    ordered = np.sort(hashes)
    shared = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    repeats = np.zeros(len(hashes), bool)
    if len(shared) == 0:
        return repeats
    rows = np.flatnonzero(np.isin(hashes, shared))
    keys = [column[rows] for column in columns]
    # Rows are the least of the keys: among equal events the earliest comes first and is no repeat.
    order = np.lexsort([rows, *keys])
    same = np.ones(len(rows) - 1, bool)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    repeats[rows[order][1:][same]] = True
    return repeats


def check_duplicates(policy: DuplicatePolicy, repeats: Flags, events: RawEvents) -> None:
    """Check that no event repeats another, where that is asked for.

    Args:
        policy: what is asked for.
        repeats: (n,) of `find_duplicates`.
        events: n of them.

    Raises:
        DataError: names the first repeated row and the one that it repeats.
    """
    if policy != "refuse" or not repeats.any():
        return
    second = int(np.argmax(repeats))
    same = np.ones(second, bool)
    for column in _columns(events):
        same &= column[:second] == column[second]
    file, row = events.locate(second)
    first_file, first_row = events.locate(int(np.argmax(same)))
    raise DataError(
        f"the event of {first_file}, row {first_row} again; {int(repeats.sum()):,} events repeat another one",
        file=file,
        row=row,
        field="filter.duplicates",
        remedy='Leave them out with filter.duplicates = "drop", or accept them with "keep"',
    )


def _columns(events: RawEvents) -> list[Array]:
    when = events.positions if events.times is None else events.times.values
    ratings = None if events.ratings is None else events.ratings.codes
    columns = (events.users, events.items, when, events.behaviours, ratings)
    return [column for column in columns if column is not None]
