"""Beam search held to the tuples that exist, for all users of a batch at once.

Legend: B users, W beams of the step at hand, K_r codes of position r ('missing' included where the model
knows it), C candidates of a user, S items to leave out.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from trec_semid.core.errors import ShapeError
from trec_semid.layers.tuple_trie import TupleTrie
from trec_semid.metrics.target_positions import ListedTargets, UserItems, positions_in_lists
from trec_semid.models.heads.beams import Beams, NextLogProbs
from trec_semid.search.code_prior import CodePrior
from trec_semid.search.retrieved import (
    Retrieved,
    best_items,
    expect_no_nan,
    expect_positive,
    is_excluded,
    top_places,
    unlisted_rows,
)

_CHUNK_BYTES = {"cpu": 4 * 2**20, "cuda": 512 * 2**20}
"""Bound on what the candidates of the users handled together take; on a CPU they should stay in its cache."""
_CANDIDATE_BYTES = 64


@torch.no_grad()
def beam_search(
    trie: TupleTrie,
    num_users: int,
    next_log_probs: NextLogProbs,
    width: int,
    *,
    exclude: Tensor | None = None,
    gains: Sequence[Tensor] | None = None,
    allowed: Tensor | None = None,
) -> Beams:
    """Find each user's tuples of highest sum of log-probabilities, among those that exist.

    Position by position, the children of the live beams are scored, and the best `width` of them live on.
    With `width` >= the number of tuples the result is exact. A prefix of score -inf is none: what the
    model calls impossible is not returned, and neither is one all of whose items are left out.

    Args:
        trie: the catalogue's tuples.
        num_users: B.
        next_log_probs: the model; called once for each position.
        width: beams that go on.
        exclude: (B, S) item rows to leave out for each user, filled up with -1.
        gains: R or more of (M_r,), what is added to the score of a node of each level; None adds nothing.
        allowed: (B, N + 1) int32, how many of the items before each place in `trie.items` may be listed;
            None where all may.

    Returns:
        W <= width whole tuples of each user, with the leaves of the trie as nodes.

    Raises:
        ConfigError: no users, or a width under 1.
        ShapeError: log-probabilities of another shape than the beams and the trie ask for.
        DataError: a log-probability is NaN.
    """
    expect_positive(num_users, "num_users")
    expect_positive(width, "width")
    nothing = torch.zeros(num_users, 1, dtype=torch.int64, device=trie.device)
    codes = nothing.new_zeros(num_users, 1, 0)
    # One beam a user, without codes and of log-probability 0: the root of the trie.
    beams = Beams(codes, nothing, nothing.float(), nothing)
    places = None if exclude is None else trie.places_of(exclude)
    for position in range(trie.num_positions):
        log_probs = next_log_probs(position, beams)
        _expect_log_probs(log_probs, position, beams, trie)
        # Gone as soon as nothing is left under it: what cannot end in an item takes no place in the beam.
        emptied = None if places is None else trie.emptied_by(position, places)
        gained = None if gains is None else gains[position]
        beams = _advance(trie, beams, _Said(log_probs, gained, allowed), width, emptied)
    return beams


def decode_items(
    trie: TupleTrie,
    num_users: int,
    next_log_probs: NextLogProbs,
    *,
    width: int,
    num_items: int,
    exclude: Tensor | None = None,
    gains: Sequence[Tensor] | None = None,
    allowed: Tensor | None = None,
) -> Retrieved:
    """Return the items of the best `width` tuples that have any, by (score descending, item row ascending).

    Items that share a tuple share its score and are all there, up to the asked number. Lists are
    shorter where the tuples have fewer: `width` bounds the tuples, not the items.

    Args:
        trie: the catalogue's tuples.
        num_users: B.
        next_log_probs: the model.
        width: beams that go on.
        num_items: length of the lists.
        exclude: (B, S) item rows to leave out for each user, filled up with -1.
        gains: R + 1 of (M_r,), what is added to the score of a node of each level, and at last (N,) of an
            item by its place in `trie.items`; None adds nothing.
        allowed: as of `beam_search`.

    Raises:
        ConfigError: no users, a width under 1, or lists of no items.
        ShapeError: log-probabilities of another shape than the beams and the trie ask for.
        DataError: a log-probability is NaN.
    """
    expect_positive(num_items, "num_items")
    beams = beam_search(trie, num_users, next_log_probs, width, exclude=exclude, gains=gains, allowed=allowed)
    level = trie.num_positions
    counts = _live_children(trie, level, beams)
    if gains is None and allowed is None:
        # Of a tuple with very many items, those that cannot reach the list are not looked at: they score
        # alike, so the first ones stand for it.
        counts.clamp_(max=num_items + (0 if exclude is None else exclude.shape[1]))
    num_slots = _num_slots(counts)
    parts: list[Retrieved] = []
    for own in _together(trie, len(counts), num_slots):
        owned = trie.children(level, beams.nodes[own], counts[own], num_slots)
        rows = trie.items[owned.nodes]
        left_out = ~owned.exists if exclude is None else ~owned.exists | is_excluded(rows, exclude[own])
        if allowed is not None:
            left_out |= _num_allowed(allowed[own], owned.nodes, owned.nodes + 1) == 0
        scores = beams.scores[own].gather(1, owned.parents)
        if gains is not None:
            scores += gains[level][owned.nodes]
        scores.masked_fill_(left_out, -torch.inf)
        parts.append(best_items(scores, rows, num_items))
    return Retrieved(*(torch.cat(column) for column in zip(*parts, strict=True)))


@final
class BeamSearch:
    """Lists the items of the tuples that a beam of `width` finds; items of a tuple stand by row.

    Targets that the beam does not reach are in no list: with `width` >= the number of tuples it is exact.
    """

    def __init__(
        self, codes: Tensor, sizes: Sequence[int], width: int, *, prior: CodePrior | None = None
    ) -> None:
        """Sort the tuples of a map.

        Args:
            codes: (N, R) of all items, on the device of the search.
            sizes: R, codes that each position knows without 'missing'.
            width: beams that go on.
            prior: by which the codes of independent heads are weighed; None takes them as they are.
        """
        self._trie, self.width = TupleTrie.build(codes, sizes).to(codes.device), width
        self._gains = prior.of_nodes(self._trie) if prior else None

    def places(
        self, num_users: int, next_log_probs: NextLogProbs, users: UserItems, length: int
    ) -> ListedTargets:
        """Return where targets stand, and lists of so many items, of B users.

        Args:
            num_users: B.
            next_log_probs: what the model says of them.
            users: their targets, and items that are not listed.
            length: of the lists.
        """
        retrieved = self.retrieve(num_users, next_log_probs, users, length)
        positions = positions_in_lists(retrieved.items, users.targets, users.num_targets)
        return ListedTargets(positions, retrieved.items)

    def retrieve(
        self, num_users: int, next_log_probs: NextLogProbs, users: UserItems, num_items: int
    ) -> Retrieved:
        """Return lists of so many items with their scores; arguments as of `places`."""
        exclude, width = unlisted_rows(users) if len(users.masked) else None, self.width
        return decode_items(
            self._trie,
            num_users,
            next_log_probs,
            width=width,
            num_items=num_items,
            exclude=exclude,
            gains=self._gains,
        )


class _Said(NamedTuple):
    """What is added to a beam's score for the code that it goes on with."""

    log_probs: Tensor
    """(B, W or 1, K_r)."""
    gains: Tensor | None
    """(M_r,) of the node that the code leads to; None for nothing."""
    allowed: Tensor | None = None
    """(B, N + 1) as of `beam_search`."""


def _advance(trie: TupleTrie, beams: Beams, said: _Said, width: int, emptied: Tensor | None) -> Beams:
    """Go on by a position; `emptied` (B, S) are its nodes that have no items left."""
    position = beams.codes.shape[2]
    counts = _live_children(trie, position, beams)
    num_slots = _num_slots(counts)
    parts: list[tuple[Tensor, ...]] = []
    for own in _together(trie, len(counts), num_slots):
        children = trie.children(position, beams.nodes[own], counts[own], num_slots)
        codes = trie.codes[position][children.nodes].long()
        scores = beams.scores[own].gather(1, children.parents)
        scores += _pick(said.log_probs[own], children.parents, codes)
        if said.gains is not None:
            scores += said.gains[children.nodes]
        # Slots of users with fewer candidates hold no real score: they go before the check for NaN.
        scores.masked_fill_(~children.exists, -torch.inf)
        if said.allowed is not None:
            # Gone before the best are chosen: what cannot end in an item that may be listed takes no place.
            bounds = trie.starts[position].long()
            first, last = bounds[children.nodes], bounds[children.nodes + 1]
            scores.masked_fill_(_num_allowed(said.allowed[own], first, last) == 0, -torch.inf)
        expect_no_nan(scores)
        best = _best_left(scores, children.nodes, None if emptied is None else emptied[own], width)
        parts.append(tuple(x.gather(1, best) for x in (codes, children.parents, scores, children.nodes)))
    codes, parents, scores, nodes = (torch.cat(column) for column in zip(*parts, strict=True))
    before = beams.codes.gather(1, parents.unsqueeze(2).expand(-1, -1, position))
    return Beams(torch.cat([before, codes.unsqueeze(2)], 2), parents, scores, nodes)


def _num_allowed(allowed: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Return (B, C): how many items at places `first` up to `last` (B, C) may be listed, of (B, N + 1)."""
    return allowed.gather(1, last) - allowed.gather(1, first)


def _best_left(scores: Tensor, nodes: Tensor, emptied: Tensor | None, width: int) -> Tensor:
    """Return (B, min(width, C)): places of the best candidates that have items left; others get -inf."""
    num_emptied = 0 if emptied is None else int((emptied >= 0).sum(1).max())
    best = top_places(scores, nodes, min(width + num_emptied, nodes.shape[1]))
    if emptied is None or not num_emptied:
        return best
    # So many more hold the best that are left; all candidates need not be looked up.
    is_emptied = is_excluded(nodes.gather(1, best), emptied)
    scores.scatter_(1, best, scores.gather(1, best).masked_fill_(is_emptied, -torch.inf))
    # A stable sort of 0 and 1 moves emptied ones to the end and leaves the others in the order of scores.
    return best.gather(1, is_emptied.byte().sort(dim=1, stable=True).indices[:, :width])


def _together(trie: TupleTrie, num_users: int, num_slots: int) -> list[slice]:
    """Return the users whose candidates are looked at together, stretch after stretch."""
    bound = _CHUNK_BYTES.get(trie.device.type, _CHUNK_BYTES["cpu"])
    users = max(1, bound // (_CANDIDATE_BYTES * num_slots))
    return [slice(start, start + users) for start in range(0, num_users, users)]


def _live_children(trie: TupleTrie, level: int, beams: Beams) -> Tensor:
    return trie.count_children(level, beams.nodes).mul_(beams.scores > -torch.inf)


def _num_slots(counts: Tensor) -> int:
    """Return C, at least 1: the most children that a user's beams have."""
    return max(1, int(counts.sum(1).max()))


def _pick(log_probs: Tensor, parents: Tensor, codes: Tensor) -> Tensor:
    """Return (B, C): log-probability of each candidate's code after its prefix."""
    # The model ignores the prefix: all beams of a user read one row, and nothing is copied.
    if log_probs.shape[1] == 1:
        return log_probs[:, 0].gather(1, codes)
    return log_probs.flatten(1).gather(1, codes.add(parents, alpha=log_probs.shape[2]))


def _expect_log_probs(log_probs: Tensor, position: int, beams: Beams, trie: TupleTrie) -> None:
    num_users, num_beams = beams.scores.shape
    # A model may know 'missing' (the code after the last) or not: what items have is the least it must know.
    least, most = trie.highest[position] + 1, trie.sizes[position] + 1
    fits = log_probs.dim() == 3 and log_probs.shape[0] == num_users and log_probs.shape[1] in (1, num_beams)
    if not fits or not least <= log_probs.shape[2] <= most:
        raise ShapeError(
            f"log-probabilities of position {position}: wrong shape (got {tuple(log_probs.shape)}, "
            f"expected ({num_users}, {num_beams} or 1, {least} to {most}))."
        )
