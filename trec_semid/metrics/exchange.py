"""Packed rows of every rank, brought together so that each user is counted once, in bounded memory.

Every rank keeps its rows as sorted runs; what exceeds the bound lies on its disk. To count, the ranks
agree on boundaries between keys, from a sample of every run, such that few rows lie between two of
them. Each such range goes to one rank, one range per rank and round, and is sorted and counted there.
A user (or, for AUC, the one user that stands for all) whose rows span several ranges is put together
from what each range says of it, so no user need fit into memory. A few rows go to the first rank at once:
to part them would take more messages than they are worth.
"""

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from trec_semid.core.arrays import Ints
from trec_semid.core.processes import scratch_prefix
from trec_semid.metrics.keys import USER_SHIFT, Keys, sort_keys
from trec_semid.metrics.pairs import PairCounts, count_pairs
from trec_semid.runtime.ranks import gather_objects, num_ranks

MAX_ROWS_IN_MEMORY = 1 << 24
"""Rows a rank holds before it writes a sorted run to disk, and rows moved at once when counting."""
_FEW_ROWS = 1 << 14
"""Rows of all ranks together that the first counts alone."""


class SortedRuns:
    """Keys in the order they come, stored as sorted runs; more than `max_rows` of them lie on disk."""

    def __init__(self, max_rows: int = MAX_ROWS_IN_MEMORY) -> None:
        self.max_rows = max_rows
        self.num_rows = 0
        self._buffer: list[Keys] = []
        self._num_buffered = 0
        self._spilled: list[Keys] = []
        self._folder: str | None = None

    def append(self, keys: Keys) -> None:
        """Take keys in any order."""
        self.num_rows += len(keys)
        while len(keys):
            part, keys = np.split(keys, [self.max_rows - self._num_buffered])
            self._buffer.append(part)
            self._num_buffered += len(part)
            if self._num_buffered == self.max_rows:
                self._spill()

    def runs(self) -> list[Keys]:
        """Return the sorted runs; those on disk are memory-mapped."""
        if self._buffer:
            self._buffer = [_sorted(self._buffer)]
        return self._spilled + self._buffer

    def _spill(self) -> None:
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix=scratch_prefix())
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = os.path.join(self._folder, f"run-{len(self._spilled)}.npy")
        np.save(path, _sorted(self._buffer))
        self._spilled.append(np.load(path, mmap_mode="r"))
        self._buffer, self._num_buffered = [], 0


class _Part(NamedTuple):
    """What one range says of a user that may go on in the range before or after."""

    range_number: int
    user: int
    negatives: int
    positives: int
    doubled_credit: int | None
    """None for a share of a single tie, whose pairs are known once all ranks' shares are added."""


class _Facts(NamedTuple):
    """What a rank says of its rows before they are counted."""

    num_rows: int
    num_runs: int
    max_rows: int
    few: Keys | None
    """All of them, where they are few."""


def count_pairs_over_ranks(*stores: SortedRuns) -> list[Iterator[PairCounts]]:
    """Return for each store the counts of every user that any rank holds rows of, each on exactly one rank.

    Every rank must take part and exhaust the iterators one after another. Rows in memory: at most the store's
    own plus about two times `max_rows`, whatever the number of users or the size of one.
    """
    runs = [store.runs() for store in stores]
    mine = [
        _Facts(store.num_rows, len(own), store.max_rows, _few(store, own))
        for store, own in zip(stores, runs, strict=True)
    ]
    # Of all stores at once: a message takes longer than most of them.
    of_ranks = [[_Facts(*each) for each in said] for said in gather_objects([tuple(each) for each in mine])]
    return [_count_pairs(own, facts) for own, *facts in zip(runs, *of_ranks, strict=True)]


def _count_pairs(runs: list[Keys], facts: Sequence[_Facts]) -> Iterator[PairCounts]:
    """Yield the counts of one store, of which each rank has said its facts."""
    world_size, rank = len(facts), dist.get_rank() if len(facts) > 1 else 0
    num_rows, num_runs = sum(fact.num_rows for fact in facts), sum(fact.num_runs for fact in facts)
    if world_size == 1 and num_runs <= 1:
        yield from (count_pairs(run) for run in runs)
        return
    few = [fact.few for fact in facts if fact.few is not None]
    if len(few) == world_size:
        if rank == 0:
            yield count_pairs(_sorted(few))
        return
    max_rows = min(fact.max_rows for fact in facts)
    # A range may hold twice as many, and in a round a rank may send one range's rows to every rank: together
    # at most `max_rows`.
    range_rows = max(1, min(max_rows // (2 * world_size), math.ceil(num_rows / world_size)))
    boundaries = _agree_on_boundaries(runs, range_rows, num_runs)
    offsets = [np.concatenate(([0], np.searchsorted(run, boundaries), [len(run)])) for run in runs]
    ties = _single_ties(boundaries)
    parts: list[_Part] = []
    for number in ties:
        parts += _tie_share(runs, offsets, int(number), boundaries[number - 1])
    for first in range(0, len(boundaries) + 1, world_size):
        numbers = range(first, min(first + world_size, len(boundaries) + 1))
        keys = _all_to_all([_slice(runs, offsets, n, skip=n in ties) for n in numbers], world_size)
        sort_keys(keys)
        whole, cut = _split_edges(count_pairs(keys), first + rank)
        parts += cut
        yield whole
    gathered = [part for each in gather_objects(parts) for part in each]
    if rank == 0:
        yield _join_parts(gathered)


def _few(store: SortedRuns, runs: Sequence[Keys]) -> Keys | None:
    """Return this rank's keys where its share of a few, and of what may be held at once, has room."""
    if num_ranks() == 1 or store.num_rows > min(_FEW_ROWS, store.max_rows) // num_ranks():
        return None
    return np.concatenate([np.empty(0, np.uint64), *runs])


def _sorted(buffer: Sequence[Keys]) -> Keys:
    keys = np.concatenate(buffer)
    sort_keys(keys)
    return keys


def _agree_on_boundaries(runs: Sequence[Keys], range_rows: int, num_runs: int) -> Keys:
    """Return sorted keys, never inside a tie, with at most 2 * `range_rows` rows between two of them.

    Every step-th key of a run stands for `step` rows, so a count by samples is wrong by less than
    `step` per run: with step = range_rows / runs, by less than `range_rows`. A tie that is heavier
    than that gets a range of its own, from its score to just above.
    """
    step = max(1, range_rows // max(num_runs, 1))
    mine = np.concatenate([np.empty(0, np.uint64), *(run[step - 1 :: step] for run in runs)])
    samples = np.sort(np.concatenate(gather_objects(mine)))
    # Without the label's bit, so that a boundary lies before a whole tie.
    chosen = samples[:: max(1, range_rows // step)] & ~np.uint64(1)
    values, times = np.unique(chosen, return_counts=True)
    # Chosen twice: a tie heavier than a range. 2 above it is the next score, since the lowest bit is the
    # label.
    return np.unique(np.concatenate((values, values[times > 1] + np.uint64(2))))


def _single_ties(boundaries: Keys) -> set[int]:
    """Return the numbers of ranges that hold one score of one user; range n ends at boundary n."""
    return set((np.flatnonzero(np.diff(boundaries) == 2) + 1).tolist())


def _tie_share(runs: Sequence[Keys], offsets: Sequence[Ints], number: int, key: np.uint64) -> list[_Part]:
    """Count this rank's rows of a single tie without moving them."""
    positive_from = [int(np.searchsorted(run, key | np.uint64(1))) for run in runs]
    negatives = sum(start - int(at[number]) for start, at in zip(positive_from, offsets, strict=True))
    positives = sum(int(at[number + 1]) - start for start, at in zip(positive_from, offsets, strict=True))
    return [_Part(number, int(key >> USER_SHIFT), negatives, positives, None)]


def _slice(runs: Sequence[Keys], offsets: Sequence[Ints], number: int, *, skip: bool) -> list[Keys]:
    if skip:
        return []
    return [run[at[number] : at[number + 1]] for run, at in zip(runs, offsets, strict=True)]


def _all_to_all(slices: list[list[Keys]], world_size: int) -> Keys:
    """Send the r-th entry to rank r; return what all ranks sent here."""
    slices += [[]] * (world_size - len(slices))
    sent = np.concatenate([np.empty(0, np.uint64), *(run for to_rank in slices for run in to_rank)])
    if world_size == 1:
        return sent
    sizes = torch.tensor([sum(map(len, to_rank)) for to_rank in slices])
    incoming = torch.empty_like(sizes)
    dist.all_to_all_single(incoming, sizes)
    received = torch.empty(int(incoming.sum()), dtype=torch.int64)
    # The bits travel as int64, and are compared as unsigned again on arrival.
    outgoing = torch.from_numpy(sent.view(np.int64))
    dist.all_to_all_single(received, outgoing, incoming.tolist(), sizes.tolist())
    return received.numpy().view(np.uint64)


def _split_edges(counts: PairCounts, number: int) -> tuple[PairCounts, list[_Part]]:
    """Part the users that lie wholly inside a range from its first and last, which may go on outside."""
    edges = sorted({0, len(counts.users) - 1}) if len(counts.users) else []
    columns = [np.asarray(column) for column in counts]
    parts = [_Part(number, *(int(column[edge]) for column in columns)) for edge in edges]
    return PairCounts(*(column[1:-1] for column in columns)), parts


def _join_parts(parts: list[_Part]) -> PairCounts:
    """Put users that ranges cut together: a positive also beats the negatives of all ranges below."""
    totals: dict[int, list[int]] = {}
    merged: dict[tuple[int, int], _Part] = {}
    for part in parts:
        key = (part.user, part.range_number)
        before = merged.get(key)
        if before:  # shares of one tie
            part = part._replace(  # noqa: PLW2901
                negatives=part.negatives + before.negatives, positives=part.positives + before.positives
            )
        merged[key] = part
    for (user, _), part in sorted(merged.items()):
        negatives, positives, credit = totals.get(user, [0, 0, 0])
        inside = part.negatives * part.positives if part.doubled_credit is None else part.doubled_credit
        credit += inside + 2 * negatives * part.positives
        totals[user] = [negatives + part.negatives, positives + part.positives, credit]
    table = np.array([[user, *total] for user, total in totals.items()], np.int64).reshape(-1, 4)
    return PairCounts(*table.T)
