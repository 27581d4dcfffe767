"""Items that have the same tuple of codes: counted, numbered, or moved to the nearest free tuple.

Legend: N items, R positions, K codes, m items to move, T tuples that each of them may try.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trec_semid.core.arrays import Array, Flags, Int32s, Ints
from trec_semid.core.hashing import Hashes, exact_tuple_keys, tuple_keys
from trec_semid.metrics.codes import Collisions, count_collisions
from trec_semid.tokenizers.encode import Encoded, measure
from trec_semid.tokenizers.inputs.contents import Contents, ItemContents
from trec_semid.tokenizers.tokenizer import Tokenizer

Resolution = Literal["keep", "extra_code", "next_nearest"]
_TRIES = (64, 512)
"""T: few tuples first; items for which none of them is free try more."""
_NEAR_CODES = 32
"""Candidate codes of a position for an item's tuples, beside its own."""
_TRIED_TUPLES = 2**17
"""Bound on items of a chunk times T."""


class Resolved(NamedTuple):
    """Codes after collisions were dealt with, and what changed."""

    resolution: Resolution
    encoded: Encoded
    """Codes (N, R) and errors; codes that moved have the errors of where they moved to."""
    extra: Int32s | None
    """(N, 1): the number of each item among those of its tuple, in row order, where they were numbered."""
    before: Collisions
    after: Collisions
    moved: int
    """Items that left the tuple their content gave them."""

    @property
    def codes(self) -> Int32s:
        """(N, R) or, with the extra code at the end, (N, R + 1)."""
        if self.extra is None:
            return self.encoded.codes
        return np.concatenate([self.encoded.codes, self.extra], axis=1)

    def sizes(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Return the codebook size of each position; the extra one's is the largest group's."""
        extra = () if self.extra is None else (int(self.extra.max()) + 1,)
        return tokenizer.codebook_sizes + extra


def resolve_collisions(
    resolution: Resolution, tokenizer: Tokenizer, catalogue: ItemContents, encoded: Encoded
) -> Resolved:
    """Deal with items of equal tuples.

    Args:
        resolution: `keep` leaves them. `extra_code` numbers the items of each tuple in one more position.
            `next_nearest` leaves the first item of a tuple where it is and moves each later one, in row
            order, to the free tuple that is least farther from it, the sum over changed positions of
            how much farther the new code is. 'missing' stays missing, and an item stays where it is
            if the T nearest tuples are taken.
        tokenizer: the one whose codes they are.
        catalogue: the content of all items.
        encoded: their codes.
    """
    sizes = tokenizer.codebook_sizes
    before = count_collisions(encoded.codes, sizes)
    if resolution == "keep":
        return Resolved(resolution, encoded, None, before, before, 0)
    numbers = _number_within_groups(exact_tuple_keys(encoded.codes, sizes))
    if resolution == "extra_code":
        extra = numbers.astype(np.int32)[:, None]
        codes = np.concatenate([encoded.codes, extra], axis=1)
        after = count_collisions(codes, (*sizes, int(extra.max()) + 1))
        return Resolved(resolution, encoded, extra, before, after, 0)
    # Number 0 is the first item of a tuple, which keeps it: no tuple becomes free while others move.
    moved = _move(tokenizer, catalogue, encoded, np.flatnonzero(numbers))
    changed = np.flatnonzero((moved.codes != encoded.codes).any(1))
    return Resolved(resolution, moved, None, before, count_collisions(moved.codes, sizes), len(changed))


def describe_resolution(resolved: Resolved) -> dict[str, Any]:
    """Return what `quality.json` says of it."""
    return {
        "resolution": resolved.resolution,
        "before": resolved.before._asdict(),
        "after": resolved.after._asdict(),
        "moved_items": resolved.moved,
    }


def _number_within_groups(keys: Array) -> Ints:
    """Return 0, 1, 2, ... to the items of each key, in row order."""
    order = np.argsort(keys, kind="stable")
    is_first = np.append(True, keys[order][1:] != keys[order][:-1])
    starts = np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0))
    numbers = np.empty(len(keys), np.int64)
    numbers[order] = np.arange(len(keys)) - starts
    return numbers


def _move(tokenizer: Tokenizer, catalogue: ItemContents, encoded: Encoded, movers: Ints) -> Encoded:
    codes, errors, cosines = encoded.codes.copy(), encoded.errors.copy(), encoded.cosines.copy()
    sizes = tokenizer.codebook_sizes
    # The catalogue's keys are sorted once; those given out are few and sorted after every chunk.
    taken, given = np.sort(tuple_keys(codes, sizes)), np.empty(0, np.uint64)
    for tries in _TRIES:
        stuck: list[Ints] = []
        for rows in np.array_split(movers, max(1, -(-len(movers) * tries // _TRIED_TUPLES))):
            contents = catalogue.batch(rows).to(tokenizer.device)
            tuples = _nearest_tuples(tokenizer, contents, torch.from_numpy(codes[rows]), tries).cpu()
            keys = tuple_keys(tuples.numpy(), sizes)
            choice = _choose_free(keys, ~(_contains(taken, keys) | _contains(given, keys)))
            has_free = choice >= 0
            codes[rows[has_free]] = tuples.numpy()[has_free, choice[has_free]]
            errors[rows], cosines[rows] = _measure(tokenizer, contents, codes[rows])
            given = np.sort(np.append(given, keys[has_free, choice[has_free]]))
            stuck.append(rows[~has_free])
        movers = np.concatenate(stuck)
    return Encoded(codes, errors, cosines)


@torch.no_grad()
def _nearest_tuples(tokenizer: Tokenizer, contents: Contents, codes: Tensor, tries: int) -> Tensor:
    """Return (m, T, R): tuples by how much farther they are, the own one left out."""
    own = codes.long().to(tokenizer.device)
    tuples, costs = own.unsqueeze(1), own.new_zeros(len(own), 1, dtype=torch.float32)
    for position, size in enumerate(tokenizer.codebook_sizes):
        distances = tokenizer.distances(contents, own, position)
        here = own[:, position : position + 1]
        farther = distances - distances.gather(1, here.clamp(max=size - 1))
        near = farther.topk(min(size, _NEAR_CODES), largest=False)
        # A code may be nearer than the own one where later levels were chosen after it.
        cost = torch.where((near.indices == here) | (here == size), torch.inf, near.values)
        cost = torch.cat([torch.zeros_like(cost[:, :1]), cost], dim=1)
        options = torch.cat([here, near.indices], dim=1)
        sums = (costs.unsqueeze(2) + cost.unsqueeze(1)).flatten(1)
        # Costs add up over positions, so the cheapest tuples begin with the cheapest beginnings: keeping
        # those loses none of them.
        costs, best = sums.topk(min(tries + 1, sums.shape[1]), largest=False, sorted=True)
        extended = tuples.gather(1, (best // cost.shape[1]).unsqueeze(2).expand(-1, -1, tuples.shape[2]))
        extended[:, :, position] = options.gather(1, best % cost.shape[1])
        tuples = extended
    # What cannot be had (infinite cost) is offered as the own tuple, which is never free.
    return torch.where(costs.isinf().unsqueeze(2), own.unsqueeze(1), tuples).int()


def _choose_free(keys: Hashes, free: Flags) -> Ints:
    """Give each item the first of its tuples that is free and that no other item was given.

    Everybody asks for a tuple at once, and the earliest row gets it. The others ask on, in steps as long as
    the queue they stood in, so that alike items spread out at once instead of queueing again and again.

    Args:
        keys: (m, T), by preference.
        free: (m, T), which of them nobody had before.

    Returns:
        (m,) which of its tuples each item has, -1 for none.
    """
    num_items, num_tries = keys.shape
    # The next free column at or after each column; T, past the end, where there is none.
    columns = np.where(free, np.arange(num_tries), num_tries)
    following = np.minimum.accumulate(columns[:, ::-1], axis=1)[:, ::-1]
    following = np.append(following, np.full((num_items, 1), num_tries), axis=1)
    choice, given = np.full(num_items, -1), np.empty(0, np.uint64)
    waiting, asks = np.arange(num_items), following[:, 0]
    while True:
        waiting, asks = waiting[asks < num_tries], asks[asks < num_tries]
        if not len(waiting):
            return choice
        asked = keys[waiting, asks]
        queue = _number_within_groups(asked)
        gets = (queue == 0) & ~_contains(given, asked)
        choice[waiting[gets]] = asks[gets]
        given = np.sort(np.append(given, asked[gets]))
        ahead = (asks + np.maximum(queue, 1))[~gets]
        waiting = waiting[~gets]
        asks = following[waiting, np.minimum(ahead, num_tries)]


def _contains(ordered: Hashes, keys: Hashes) -> Flags:
    if not len(ordered):
        return np.zeros(keys.shape, bool)
    places = np.searchsorted(ordered, keys)
    return ordered[np.minimum(places, len(ordered) - 1)] == keys


@torch.no_grad()
def _measure(tokenizer: Tokenizer, contents: Contents, codes: Int32s) -> list[Array]:
    measured = measure(tokenizer, contents, torch.from_numpy(codes).long().to(tokenizer.device))
    return [part.cpu().numpy() for part in measured]
