"""Which items no list can hold, whoever asks: those that always stand behind others of the same score.

Items of one vector, and where codes count of one tuple, have one score whatever the question. They stand in a
row, by what is taken off their scores and then by item row, and a list of N places has at most the first N.
Items of the user's history make room for as many of the others. Whether an item that can be listed is listed
anywhere is a matter of what users ask (`coverage@N`).

Legend: N items of the catalogue, n of this rank's stretch, R positions, D width.
"""

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from trec_semid.core.arrays import Array
from trec_semid.core.hashing import Hashes, hash_columns
from trec_semid.runtime.ranks import gather_objects
from trec_semid.search.catalogue import Catalogue


def hidden_items(catalogue: Catalogue, penalties: Tensor | None, cutoffs: Iterable[int]) -> dict[str, float]:
    """Return `hidden@N`: the share of the catalogue that no list of N can hold; all ranks call it together.

    Memory: 8 bytes an item on every rank. Of two different scores one in 2^64 pairs is taken for one.

    Args:
        catalogue: whole, or this rank's stretch.
        penalties: (N,) taken off the scores; None where nothing is.
        cutoffs: each N.
    """
    keys = np.concatenate(gather_objects(_keys(catalogue)) if catalogue.is_shared else [_keys(catalogue)])
    behind = _positions(keys, None if penalties is None else penalties.cpu().numpy())
    return {f"hidden@{cutoff}": float((behind >= cutoff).mean()) for cutoff in cutoffs}


def _keys(catalogue: Catalogue) -> Hashes:
    """Return (n,) hashes that are equal where items have one score."""
    parts: list[Array] = []
    if catalogue.vectors is not None:
        # The bits of numbers, as integers; -0.0 + 0.0 = 0.0, which scores the same.
        bits = (catalogue.vectors.float() + 0.0).cpu().numpy().view(np.int32)
        parts += list(bits.T)
    if catalogue.codes is not None:
        parts += list(catalogue.codes.cpu().numpy().T)
    return hash_columns(parts)


def _positions(keys: Hashes, penalties: Array | None) -> Array:
    """Return (N,) how many items of the same key stand before each."""
    off = np.zeros(len(keys), np.float32) if penalties is None else penalties
    order = np.lexsort((np.arange(len(keys)), off, keys))
    begins = np.ones(len(keys), bool)
    begins[1:] = keys[order][1:] != keys[order][:-1]
    at = np.arange(len(keys))
    positions = np.empty(len(keys), np.int64)
    positions[order] = at - np.maximum.accumulate(np.where(begins, at, 0))
    return positions
