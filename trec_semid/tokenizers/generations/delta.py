"""What differs between two generations: items added, moved to another tuple, and removed.

Legend: N items before, M items now, R positions.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from trec_semid.core.arrays import Int32s, Ints
from trec_semid.core.ids import rows_of
from trec_semid.tokenizers.generations.items import StoredItems
from trec_semid.tokenizers.generations.manifest import Change


class Delta(NamedTuple):
    """Rows of both sides."""

    added: Ints
    """Rows of the items that are there now only."""
    moved: Ints
    """Rows now of the items that have another tuple."""
    moved_from: Ints
    """Their rows before."""
    removed: Ints
    """Rows before of the items that are gone."""
    drift: tuple[float, ...] | None
    """Of the items of both, the share with another code at each position; None where tuples have other
    lengths: then all of them moved."""

    def change(self) -> Change:
        """Return the counts."""
        sizes = {name: len(getattr(self, name)) for name in ("added", "moved", "removed")}
        return Change(**sizes, drift=self.drift)


def compare_items(before: StoredItems, now: StoredItems) -> Delta:
    """Compare the items of two generations by their ids.

    Args:
        before: (N,) items, all of them there.
        now: (M,) items, all of them there.
    """
    rows = rows_of(now.item_ids, before.item_ids)
    both = np.flatnonzero(rows >= 0)
    is_gone = np.ones(len(before.added), bool)
    is_gone[rows[both]] = False
    if before.codes.shape[1] == now.codes.shape[1]:
        differs = before.codes[rows[both]] != now.codes[both]
        drift = tuple(map(float, differs.mean(0))) if len(both) else (0.0,) * now.codes.shape[1]
        moved = both[differs.any(1)]
    else:
        drift, moved = None, both
    return Delta(np.flatnonzero(rows < 0), moved, rows[moved], np.flatnonzero(is_gone), drift)


def delta_table(delta: Delta, before: StoredItems, now: StoredItems) -> pa.Table:
    """Return the items that differ: `item_id`, `change`, and their codes `before` and `now`, or null.

    Args:
        delta: of the two.
        before: (N,) items.
        now: (M,) items.
    """
    counts = [len(delta.added), len(delta.moved), len(delta.removed)]
    words = pa.DictionaryArray.from_arrays(
        pa.array(np.repeat(np.arange(3, dtype=np.int8), counts)), pa.array(["added", "moved", "removed"])
    )
    pieces = [(now, delta.added), (now, delta.moved), (before, delta.removed)]
    ids = pa.chunked_array([of.item_ids.take(pa.array(rows)) for of, rows in pieces], pa.large_string())
    old = [
        pa.nulls(counts[0], pa.large_list(pa.int32())),
        _lists(before.codes[delta.moved_from]),
        _lists(before.codes[delta.removed]),
    ]
    new = [
        _lists(now.codes[delta.added]),
        _lists(now.codes[delta.moved]),
        pa.nulls(counts[2], pa.large_list(pa.int32())),
    ]
    return pa.table(
        {"item_id": ids, "change": words, "before": pa.chunked_array(old), "now": pa.chunked_array(new)}
    )


def _lists(codes: Int32s) -> pa.Array:
    offsets = pa.array(np.arange(len(codes) + 1, dtype=np.int64) * codes.shape[1])
    return pa.LargeListArray.from_arrays(offsets, pa.array(codes.reshape(-1), pa.int32()))
