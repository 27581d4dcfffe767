"""The tuples of codes that exist, as a trie in flat arrays: what a decoder may say, and whose it is.

Legend: N items, R positions, M_r distinct prefixes of r + 1 codes (nodes of level r), B rows, W parents,
C children of a row, S items to leave out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from trec_semid.core.arrays import AnyInts, Array
from trec_semid.core.errors import DataError, ShapeError


class Children(NamedTuple):
    """Children of each row's parents, parent after parent, filled up to the row that has most."""

    nodes: Tensor
    """(B, C) int64: nodes of the children's level; 0 where there is none."""
    parents: Tensor
    """(B, C) int64: which of the row's W parents it belongs to."""
    exists: Tensor
    """(B, C) bool."""


@final
@dataclass(frozen=True)
class TupleTrie:
    """Prefixes of a catalogue's tuples, in lexicographic order at every level.

    Level r has a node for each distinct prefix of r + 1 codes. Nodes are numbered in lexicographic order, so
    a lower node is a lower prefix, and the children of a node are a range of the next level (compressed
    sparse rows). Children of a leaf are the items that share its tuple, by ascending row. Memory is O(N R).
    """

    sizes: tuple[int, ...]
    """Codebook size of each position; the code sizes[r] is 'missing'."""
    codes: tuple[Tensor, ...]
    """R of (M_r,) int32: the code by which a node's prefix ends."""
    offsets: tuple[Tensor, ...]
    """R + 1 of (M_{r-1} + 1,) int32: children of node i of level r - 1 are `offsets[r][i]` up to, not with,
    `offsets[r][i + 1]`; `offsets[0]` is the root's, `offsets[R]` are ranges of `items`."""
    items: Tensor
    """(N,) int64: item rows, tuple after tuple."""
    starts: tuple[Tensor, ...]
    """R of (M_r + 1,) int32: items under node i of level r are `items[starts[r][i] : starts[r][i + 1]]`."""
    place_of: Tensor
    """(N,) int64: where each item row stands in `items`."""
    highest: tuple[int, ...]
    """The highest code in use at each position."""

    @staticmethod
    def build(codes: AnyInts | Tensor, sizes: Sequence[int]) -> "TupleTrie":
        """Sort a catalogue's tuples into a trie, on the CPU.

        Args:
            codes: (N, R) integers; 0..sizes[r]-1, or sizes[r] for 'missing'.
            sizes: codebook size of each position.

        Raises:
            ShapeError: not one code for each position.
            DataError: no items, or a code outside its codebook.
        """
        array = codes.cpu().numpy() if isinstance(codes, Tensor) else np.asarray(codes)
        check_codes(array, [size + 1 for size in sizes])
        # Sixteen bits are enough for most codebooks, and are sorted by radix.
        keys = array.astype(np.uint16 if max(sizes) < 2**16 else np.int32)
        # lexsort sorts by its last key first, so the first position has to come last.
        order = np.lexsort(keys.T[::-1])
        ordered = keys[order]
        is_new = np.ones(ordered.shape, bool)
        # A prefix is new as soon as one of its codes differs from the row before: a change at an early
        # position makes every longer prefix new, whatever its later codes.
        np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1, out=is_new[1:])
        firsts = [np.flatnonzero(column) for column in is_new.T]
        # Where each parent's range of sorted items begins, counted in nodes of the level below.
        bounds = [np.array([0, len(array)]), *(np.append(first, len(array)) for first in firsts)]
        places = [*firsts, np.arange(len(array))]
        offsets = [np.searchsorted(place, bound) for place, bound in zip(places, bounds, strict=True)]
        ends = [ordered[first, position] for position, first in enumerate(firsts)]
        place_of = np.empty(len(array), np.int64)
        place_of[order] = np.arange(len(array))
        return TupleTrie(
            sizes=tuple(sizes),
            codes=tuple(torch.from_numpy(end.astype(np.int32)) for end in ends),
            offsets=tuple(torch.from_numpy(offset.astype(np.int32)) for offset in offsets),
            items=torch.from_numpy(order),
            starts=tuple(torch.from_numpy(bound.astype(np.int32)) for bound in bounds[1:]),
            place_of=torch.from_numpy(place_of),
            highest=tuple(int(end.max()) for end in ends),
        )

    def arrays(self) -> dict[str, Array]:
        """Return it as named arrays (n,), of which `of_arrays` makes it again without sorting anything."""
        parts = {"codes": self.codes, "offsets": self.offsets, "starts": self.starts}
        named = {f"{name}-{level}": part for name, own in parts.items() for level, part in enumerate(own)}
        named |= {"items": self.items, "place_of": self.place_of}
        highest = np.array(self.highest, np.int64)
        return {**{name: part.cpu().numpy() for name, part in named.items()}, "highest": highest}

    @staticmethod
    def of_arrays(arrays: Mapping[str, Array], sizes: Sequence[int], num_items: int) -> "TupleTrie":
        """Return the trie of arrays (n,) as `arrays` gives them, which may be mapped: none is copied.

        Args:
            arrays: by name.
            sizes: R, codebook size of each position.
            num_items: N.

        Raises:
            DataError: they are no trie of so many items and such codes.
        """
        fault = trie_fault(arrays, sizes, num_items)
        if fault is not None:
            raise DataError(f"no trie of {num_items:,} items: {fault}", field="trie")
        tensors = {name: torch.from_numpy(np.asarray(values)) for name, values in arrays.items()}
        levels = range(len(sizes))
        return TupleTrie(
            sizes=tuple(sizes),
            codes=tuple(tensors[f"codes-{level}"] for level in levels),
            offsets=tuple(tensors[f"offsets-{level}"] for level in range(len(sizes) + 1)),
            items=tensors["items"],
            starts=tuple(tensors[f"starts-{level}"] for level in levels),
            place_of=tensors["place_of"],
            highest=tuple(tensors["highest"].tolist()),
        )

    @property
    def num_positions(self) -> int:
        """R."""
        return len(self.sizes)

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.items)

    @property
    def num_tuples(self) -> int:
        """Distinct tuples, M_{R-1}."""
        return len(self.codes[-1])

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return self.items.device

    def to(self, device: torch.device | str) -> "TupleTrie":
        """Copy to a device."""
        return TupleTrie(
            self.sizes,
            tuple(part.to(device) for part in self.codes),
            tuple(part.to(device) for part in self.offsets),
            self.items.to(device),
            tuple(part.to(device) for part in self.starts),
            self.place_of.to(device),
            self.highest,
        )

    def count_children(self, level: int, parents: Tensor) -> Tensor:
        """Return (n,) int64: how many children each has at `level`.

        Args:
            level: 0..R-1, or R for the items of a leaf.
            parents: (n,) nodes of level - 1; 0 is the root at level 0.
        """
        offsets = self.offsets[level]
        return (offsets[parents + 1] - offsets[parents]).long()

    def places_of(self, rows: Tensor) -> Tensor:
        """Return (B, S) int64: places in `items` of distinct item rows, ascending; first -1 for what is none.

        Args:
            rows: (B, S) item rows in any order; others, as -1, stand for none.
        """
        # Sorted, so that a row named twice counts once: `emptied_by` compares how many places it is given
        # with how many items a node has.
        ordered = rows.sort(1).values
        counts = (ordered >= 0) & (ordered < self.num_items)
        counts[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
        return self.place_of[ordered.where(counts, 0)].masked_fill_(~counts, -1).sort(1).values

    def emptied_by(self, level: int, places: Tensor) -> Tensor:
        """Return (B, S) int64: nodes of a level that have no items but those; -1 for what is no such node.

        Args:
            level: 0..R-1.
            places: (B, S) as `places_of` returns them.
        """
        starts = self.starts[level]
        # Place -1 lies before every start: it becomes node -1, which owns 0 items below and so stays -1.
        nodes = torch.searchsorted(starts, places, right=True) - 1
        # Places ascend, so places of one node lie side by side: two searches count them.
        gone = torch.searchsorted(nodes, nodes, right=True) - torch.searchsorted(nodes, nodes)
        owned = starts[nodes + 1] - starts[nodes.clamp(min=0)]
        return nodes.masked_fill_(gone < owned, -1)

    def children(self, level: int, parents: Tensor, counts: Tensor, num_slots: int) -> Children:
        """List the first `counts` children of each parent.

        Args:
            level: 0..R-1, or R for the items of a leaf; then nodes are places in `items`.
            parents: (B, W) nodes of level - 1.
            counts: (B, W) at most what `count_children` says; 0 passes a parent over.
            num_slots: C, at least the largest sum of a row's counts.
        """
        ends = counts.cumsum(1)
        # A slot belongs to the parent before which just so many parents have ended.
        marks = torch.zeros(len(parents), num_slots + 1, dtype=torch.int64, device=parents.device)
        owners = marks.scatter_add_(1, ends, torch.ones_like(ends)).cumsum(1)[:, :num_slots]
        exists = owners < parents.shape[1]
        owners = owners.clamp_(max=parents.shape[1] - 1)
        # Slot s is child number s - (ends - counts) of its parent, whose children begin at its offset.
        shifts = self.offsets[level][parents] - (ends - counts)
        slots = torch.arange(num_slots, device=parents.device)
        nodes = (shifts.gather(1, owners) + slots).mul_(exists)
        return Children(nodes, owners, exists)


def trie_fault(arrays: Mapping[str, Array], sizes: Sequence[int], num_items: int) -> str | None:
    """Return what makes arrays (n,) no trie (see `TupleTrie.of_arrays`), or None.

    Whether tuples are those of a map is not asked; that nothing points outside is.
    """
    levels = len(sizes)
    counts = [len(arrays.get(f"codes-{level}", ())) for level in range(levels)]
    wanted = {
        "highest": (np.int64, levels),
        "items": (np.int64, num_items),
        "place_of": (np.int64, num_items),
    }
    wanted |= {f"codes-{level}": (np.int32, counts[level]) for level in range(levels)}
    wanted |= {f"starts-{level}": (np.int32, counts[level] + 1) for level in range(levels)}
    wanted |= {f"offsets-{level}": (np.int32, (1, *counts)[level] + 1) for level in range(levels + 1)}
    have = {name: (values.dtype.type, values.shape) for name, values in arrays.items()}
    if have != {name: (dtype, (size,)) for name, (dtype, size) in wanted.items()}:
        return "arrays of other names, types or sizes"
    return next(_pointing_outside(arrays, sizes, (*counts, num_items)), None)


def _pointing_outside(
    arrays: Mapping[str, Array], sizes: Sequence[int], counts: Sequence[int]
) -> Iterator[str]:
    """Yield what is wrong with arrays of the right sizes; `counts` has the nodes of each level, and N."""
    ranges = [(f"offsets-{level}", count) for level, count in enumerate(counts)]
    ranges += [(f"starts-{level}", counts[-1]) for level in range(len(sizes))]
    for name, end in ranges:
        bounds = np.asarray(arrays[name])
        if bounds[0] != 0 or bounds[-1] != end or (bounds[1:] <= bounds[:-1]).any():
            yield f"{name} does not divide {end:,}"
    for level, size in enumerate(sizes):
        codes = np.asarray(arrays[f"codes-{level}"])
        if codes.min() < 0 or codes.max() > size or int(arrays["highest"][level]) != codes.max():
            yield f"codes-{level} are outside of their codebook"
    items, place_of = np.asarray(arrays["items"]), np.asarray(arrays["place_of"])
    if items.min() < 0 or items.max() >= counts[-1] or (place_of[items] != np.arange(counts[-1])).any():
        yield "items are not each item once"


def check_codes(codes: AnyInts, num_codes: Sequence[int]) -> None:
    """Check that each position's codes are rows of its table.

    Args:
        codes: (N, R).
        num_codes: how many codes each position knows, 'missing' included where it is known.

    Raises:
        ShapeError: not one code for each position.
        DataError: no items, or a code that its position does not know.
    """
    if codes.ndim != 2 or codes.shape[1] != len(num_codes) or not num_codes:
        raise ShapeError(
            f"codes: wrong shape (got {codes.shape}, expected (N, R) with R = {len(num_codes)})."
        )
    if not len(codes):
        remedy = "Tokenize a dataset that has items"
        raise DataError("no items to decode to", field="codes", value=codes.shape, remedy=remedy)
    limits = np.asarray(num_codes)
    if (codes.min(0) < 0).any() or (codes.max(0) >= limits).any():
        row, position = (int(first_fault[0]) for first_fault in np.nonzero((codes < 0) | (codes >= limits)))
        remedy = f"Position {position} knows codes 0..{limits[position] - 1}: use the tokenizer of this map"
        value = int(codes[row, position])
        raise DataError("code outside its codebook", row=row + 1, field="codes", value=value, remedy=remedy)
