"""How far lists reach into the catalogue: which items none can hold, whoever asks, and which a search misses.

Items of one vector, and where codes count of one tuple, have one score whatever the question. They stand in a
row, by what is taken off their scores and then by item row, and a list of n places has at most the first n.
Items of the user's history make room for as many of the others. Whether an item that can be listed is listed
anywhere is a matter of what users ask.

Legend: N items of the catalogue, m of this rank's stretch, R positions, D width.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trec_semid.core.arrays import Array, Flags, Int32s, Ints
from trec_semid.core.hashing import Hashes, hash_columns
from trec_semid.metrics.retrieval import Absent, ReachFacts, Reason, best_places
from trec_semid.runtime.ranks import gather_objects, num_ranks
from trec_semid.search.catalogue import Catalogue

_EXAMPLES = 5
_ITEMS_AT_ONCE = 1 << 16
"""Whose vectors are looked at together."""


class Scored(NamedTuple):
    """What tells items apart for a search."""

    catalogues: Sequence[Catalogue]
    """Of each model that scores: whole, or this rank's stretch; without what does not count."""
    penalties: Tensor | None = None
    """(N,) taken off the scores; None where nothing is."""
    sizes: Sequence[int] | None = None
    """R, the code that stands for 'missing' at each position; None where that is not known."""
    pool: int = 0
    """Items that are looked at before a list is cut: behind so many an item can still move up."""


class Shown(NamedTuple):
    """What lists have."""

    cutoffs: Sequence[int]
    """Lengths of lists."""
    num_users: int
    listed: Mapping[int, float]
    """Length of the list -> share of the catalogue that is in anyone's."""


class Missing(NamedTuple):
    """What lists lack for a reason of its own."""

    reason: Reason
    search: str
    flags: Mapping[int, Flags]
    """Length of the list -> (N,)."""


def reach_of(
    scored: Scored,
    search: str,
    shown: Shown,
    names: Callable[[Ints], Sequence[str]],
    missing: Sequence[Missing] = (),
) -> ReachFacts:
    """Return what lists show, and what they lack and why; where stretches are shared, all ranks together.

    Memory: 8 bytes an item on every rank.

    Args:
        scored: what tells items apart.
        search: how lists are made.
        shown: what they have.
        names: gives the ids of (k,) item rows.
        missing: what they lack for other reasons.
    """
    behind, is_blank = standing(scored)
    hidden = {cutoff: behind >= max(cutoff, scored.pool) for cutoff in shown.cutoffs}
    reasons = [
        Missing("duplicate", search, {cutoff: flags & ~is_blank for cutoff, flags in hidden.items()}),
        Missing("blank", search, {cutoff: flags & is_blank for cutoff, flags in hidden.items()}),
        *missing,
    ]
    absent = [_absent(each, names) for each in reasons]
    return ReachFacts(
        num_items=len(behind),
        num_users=shown.num_users,
        listed=dict(shown.listed),
        absent=tuple(each for each in absent if any(each.counts.values())),
    )


def standing(scored: Scored) -> tuple[Ints, Flags]:
    """Return (N,) how many items of the same score stand before each, and of which nothing is known.

    Of two different scores one in 2^64 pairs is taken for one.
    """
    own = _keys(scored.catalogues), _blank(scored.catalogues, scored.sizes)
    parts = gather_objects(own) if scored.catalogues[0].is_shared else [own]
    keys, is_blank = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _positions(keys, None if scored.penalties is None else scored.penalties.cpu().numpy()), is_blank


def missed_items(guessed: Int32s, exact: Int32s, cutoffs: Iterable[int]) -> dict[int, Flags]:
    """Return by length of the list (N,) which items exact lists have and those of a search lack.

    Args:
        guessed: (N,) best places in the lists of the search (`metrics.retrieval.best_places`).
        exact: (N,) of the same users in exact lists.
        cutoffs: lengths.
    """
    return {cutoff: (exact <= cutoff) & (guessed > cutoff) for cutoff in cutoffs}


def missing_of(
    search: str, guessed: Tensor, exact: Tensor, num_items: int, cutoffs: Sequence[int]
) -> Missing:
    """Return which items a search misses, over the users of all ranks; all of them call it.

    Args:
        search: what guesses.
        guessed: (B, n) item rows of its lists.
        exact: (B, n) of exact lists of the same users.
        num_items: N.
        cutoffs: lengths of lists.
    """
    places = [_over_ranks(best_places(lists.numpy(), num_items)) for lists in (guessed, exact)]
    return Missing("missed", search, missed_items(places[0], places[1], cutoffs))


def reached_from(starts: Ints, ahead: Callable[[Ints], Ints], num_items: int) -> Flags:
    """Return (N,) which items of a graph can be walked to.

    Args:
        starts: where walks begin.
        ahead: gives all that (k,) items lead to; -1 is none.
        num_items: N.
    """
    reached = np.zeros(num_items, bool)
    reached[starts] = True
    latest: Ints = np.unique(starts).astype(np.int64)
    while len(latest):
        there = ahead(latest)
        is_new = np.zeros(num_items, bool)
        is_new[there[there >= 0]] = True
        is_new &= ~reached
        reached |= is_new
        latest = np.flatnonzero(is_new)
    return reached


def _over_ranks(places: Int32s) -> Int32s:
    best = torch.from_numpy(places)
    if num_ranks() > 1:
        dist.all_reduce(best, op=dist.ReduceOp.MIN)
    return np.asarray(best)


def _absent(missing: Missing, names: Callable[[Ints], Sequence[str]]) -> Absent:
    rows = {cutoff: np.flatnonzero(flags) for cutoff, flags in missing.flags.items()}
    # Those that long lists lack are the more telling ones.
    shown = next((rows[cutoff] for cutoff in sorted(rows, reverse=True) if len(rows[cutoff])), None)
    return Absent(
        reason=missing.reason,
        search=missing.search,
        counts={cutoff: len(own) for cutoff, own in rows.items()},
        examples=() if shown is None else tuple(names(shown[:_EXAMPLES])),
    )


def _keys(catalogues: Sequence[Catalogue]) -> Hashes:
    """Return (m,) hashes that are equal where items have one score."""
    rows = catalogues[0].rows
    firsts = range(0, rows.stop - rows.start, _ITEMS_AT_ONCE)
    keys = [_keys_of(catalogues, slice(first, first + _ITEMS_AT_ONCE)) for first in firsts]
    return np.concatenate(keys) if keys else np.zeros(0, np.uint64)


def _keys_of(catalogues: Sequence[Catalogue], items: slice) -> Hashes:
    """Return (n,) of some of the items that are here."""
    parts: list[Array] = []
    for catalogue in catalogues:
        if catalogue.vectors is not None:
            # The bits of numbers, as integers; -0.0 + 0.0 = 0.0, which scores the same.
            bits = (catalogue.vectors[items].float() + 0.0).cpu().numpy().view(np.int32)
            parts += list(bits.T)
        if catalogue.codes is not None:
            parts += list(catalogue.codes[items].cpu().numpy().T)
    return hash_columns(parts)


def _blank(catalogues: Sequence[Catalogue], sizes: Sequence[int] | None) -> Flags:
    """Return (m,) of which items nothing is known."""
    rows = catalogues[0].rows
    blank = np.ones(rows.stop - rows.start, bool)
    for catalogue in catalogues:
        if catalogue.vectors is not None:
            blank &= np.concatenate(
                [~part.bool().any(1).cpu().numpy() for part in catalogue.vectors.split(_ITEMS_AT_ONCE)]
            )
        if catalogue.codes is not None:
            blank &= (catalogue.codes.cpu().numpy() == np.asarray(-1 if sizes is None else sizes)).all(1)
    return blank


def _positions(keys: Hashes, penalties: Array | None) -> Ints:
    """Return (N,) how many items of the same key stand before each."""
    off = np.zeros(len(keys), np.float32) if penalties is None else penalties
    order = np.lexsort((np.arange(len(keys)), off, keys))
    begins = np.ones(len(keys), bool)
    begins[1:] = keys[order][1:] != keys[order][:-1]
    at = np.arange(len(keys))
    positions = np.empty(len(keys), np.int64)
    positions[order] = at - np.maximum.accumulate(np.where(begins, at, 0))
    return positions
