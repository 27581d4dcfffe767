"""Graph-constrained decoding: from some items along edges between items of like codes, by score.

Source: Generating Long Semantic IDs in Parallel for Recommendation (RPG), KDD 2025, whose graph has an edge
from each item to those whose codes' vectors are most alike, and follows the best items of a pool. Differs
from it: the pool's own items stay candidates; random starts are drawn once for all users; items that may not
be listed are walked through, take no place of the pool, and are left out at last.

Legend: B users, N items, n items at hand, E edges of an item, C candidates, R positions, K codes, D width.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, final

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn.functional import normalize, pad

from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError
from trec_semid.metrics.target_positions import (
    ListedTargets,
    UserItems,
    list_top_items,
    positions_in_lists,
)
from trec_semid.runtime.ranks import Ranks
from trec_semid.search.catalogue import stretch_of
from trec_semid.search.code_scores import CodeScores, sums_of_codes
from trec_semid.search.retrieved import Retrieved, best_items, is_excluded, unlisted_rows
from trec_semid.search.stretches import gather_rows

_ITEMS_AT_ONCE = 512
"""Items whose edges are built together."""
_MOST_LOOK_UPS = 1 << 39
"""That training builds a graph with at every evaluation, on a rank: about ten minutes of a processor."""
_CODES_AT_ONCE = 1 << 24
"""Codes of candidates that are looked up together."""


class GraphConfig(Config):
    """How a graph over items is built and searched."""

    kind: Literal["codes", "none"] = "codes"
    """Edges by codes; `none` searches no graph, whatever a finished run did."""
    num_edges: PositiveInt = 200
    """Of each item."""
    pool: PositiveInt = 100
    """Items that are followed in each step and listed at last, as many as the longest list at least; items
    that may not be listed are followed beside them."""
    num_steps: PositiveInt = 3
    """Along edges."""
    start: Literal["popular", "random"] = "popular"
    """The first pool of everybody: the most popular items, or random ones."""


def expect_affordable(num_items: int, num_positions: int, world_size: int) -> None:
    """Refuse a graph that is built anew at every evaluation of a training and would take most of it.

    Args:
        num_items: N.
        num_positions: R.
        world_size: ranks that build it together.

    Raises:
        ConfigError: N^2 R look-ups are too many.
    """
    look_ups = num_items**2 * num_positions // world_size
    if look_ups > _MOST_LOOK_UPS:
        most = int((_MOST_LOOK_UPS * world_size / num_positions) ** 0.5)
        raise ConfigError(
            f"evaluation.graph: {num_items:,} items of {num_positions} codes are compared with each other "
            f"before every evaluation, {look_ups:.0e} look-ups on each rank; up to {most:,} items it goes. "
            "Leave out evaluation.graph, and ask the finished run with one: [retrieval.graph] of "
            "trec-semid evaluate builds it once."
        )


class Graph(NamedTuple):
    """Items and what they lead to."""

    edges: Tensor
    """(N, E) int32 item rows, -1 after the last."""
    start: Tensor
    """(S,) item rows of the first pool."""


@torch.no_grad()
def build_edges(tables: Tensor, codes: Tensor, num_edges: int, rows: slice) -> Tensor:
    """Return (n, E) int32: the items of the most alike codes, for consecutive items; -1 after the last.

    sim(i, j) = sum_r cos(E_r,c_r(i), E_r,c_r(j)); of equal ones the lower row first; no item leads to itself.
    Takes N R look-ups an item, so N^2 R for all of them.

    Args:
        tables: (R, K + 1, D) rows of the codes.
        codes: (N, R) of all items.
        num_edges: E.
        rows: of the items at hand.
    """
    unit = normalize(tables.float(), dim=-1)
    cosines = torch.bmm(unit, unit.mT)
    parts = [codes.new_zeros((0, num_edges), dtype=torch.int32)]
    for start in range(rows.start, rows.stop, _ITEMS_AT_ONCE):
        own = torch.arange(start, min(start + _ITEMS_AT_ONCE, rows.stop), device=codes.device)
        # The cosines of an item's codes with all codes stand where log-probabilities of a user do.
        alike = torch.stack([cosines[r][codes[own, r].long()] for r in range(codes.shape[1])], dim=1)
        sums = CodeScores(alike, codes)
        nothing, ones = own[:0], torch.ones_like(own)
        items = UserItems(nothing, torch.zeros_like(own), own, ones)
        listed = list_top_items(sums.contiguous, items, len(codes), list_length=num_edges)
        parts.append(listed.items.int())
    return torch.cat(parts)


def build_all_edges(tables: Tensor, codes: Tensor, num_edges: int, ranks: Ranks) -> Tensor:
    """Return (N, E) int32 edges of all items on every rank, each of which builds those of its stretch.

    Args:
        tables: (R, K + 1, D) rows of the codes.
        codes: (N, R) of all items.
        num_edges: E.
        ranks: that build them together.
    """
    num_items = len(codes)
    own = build_edges(tables, codes, num_edges, stretch_of(ranks.rank, ranks.world_size, num_items))
    if ranks.world_size == 1:
        return own
    longest = stretch_of(0, ranks.world_size, num_items).stop
    # Only the last stretches are shorter, so that what fills them up stands behind all items.
    return gather_rows(pad(own, (0, 0, 0, longest - len(own))))[:num_items]


@torch.no_grad()
def graph_search(
    graph: Graph,
    codes: Tensor,
    log_probs: Tensor,
    *,
    pool: int,
    num_steps: int,
    exclude: Tensor,
    penalties: Tensor | None = None,
) -> Retrieved:
    """Return the pool of each user after so many steps: best items first, equal ones by row.

    A step scores what the pool leads to, and retains the best of it and of the pool itself, down to the
    so-manieth that may be listed. What may not be listed is followed too: a start within a user's history
    would lead nowhere otherwise.

    Args:
        graph: over N items.
        codes: (N, R) of all items.
        log_probs: (B, R, K) of independent heads.
        pool: items that may be listed and are retained by each step.
        num_steps: along edges.
        exclude: (B, S) item rows that are not listed, filled up with -1.
        penalties: (N,) taken off the scores; None where nothing is.
    """
    walked = _best_of(graph.start.expand(len(log_probs), -1), codes, log_probs, pool, exclude, penalties)
    for _ in range(num_steps):
        ahead = graph.edges[walked.items.clamp(min=0)].masked_fill((walked.items < 0).unsqueeze(2), -1)
        rows = torch.cat([walked.items, ahead.flatten(1)], dim=1)
        walked = _best_of(rows, codes, log_probs, pool, exclude, penalties)
    is_barred = is_excluded(walked.items, exclude)
    return best_items(walked.scores.masked_fill(is_barred, -torch.inf), walked.items, pool)


def _best_of(
    rows: Tensor, codes: Tensor, log_probs: Tensor, pool: int, exclude: Tensor, penalties: Tensor | None
) -> Retrieved:
    """Return the best of items (B, C), in which some may be twice, and -1 is none.

    They go down to the item that fills the pool with such as may be listed; others before it are there too.
    """
    ordered = rows.sort(dim=1).values
    scores = sums_of_codes(log_probs, codes, ordered.clamp(min=0))
    if penalties is not None:
        scores -= penalties[ordered.clamp(min=0)]
    is_again = torch.zeros_like(ordered, dtype=torch.bool)
    is_again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    scores.masked_fill_(is_again | (ordered < 0), -torch.inf)
    best = best_items(scores, ordered, pool + exclude.shape[1])
    places = (~is_excluded(best.items, exclude)).cumsum(1)
    # The item that fills the pool is its last; what cannot be listed after it is not walked through.
    is_late = (places > pool) | ((places == pool) & is_excluded(best.items, exclude))
    lengths = torch.minimum(best.lengths, (~is_late).sum(1))
    # Few users bar as many items as the one that bars most: the others' empty places are not followed.
    width = max(pool, int(lengths.max())) if len(lengths) else pool
    items = best.items.masked_fill(is_late, -1)[:, :width].contiguous()
    return Retrieved(items, best.scores.masked_fill(is_late, -torch.inf)[:, :width], lengths)


@final
class GraphSearch:
    """Lists the items that a pool comes to along a graph's edges; others are in no list."""

    def __init__(
        self, graph: Graph, codes: Tensor, config: GraphConfig, penalties: Tensor | None = None
    ) -> None:
        """Take a graph over the items of a map.

        Args:
            graph: over N items.
            codes: (N, R) of all items.
            config: how it is searched.
            penalties: (N,) taken off the scores; None where nothing is.
        """
        self._graph, self._codes, self._config, self._penalties = graph, codes, config, penalties

    def places(self, log_probs: Tensor, users: UserItems, length: int) -> ListedTargets:
        """Return where targets stand, as far as they are in the pool, and lists of so many items.

        Args:
            log_probs: (B, R, K) of the users.
            users: their targets, and items that are not listed.
            length: of the lists.
        """
        exclude, config = unlisted_rows(users), self._config
        seen = (config.pool + exclude.shape[1]) * (1 + self._graph.edges.shape[1])
        parts: list[Tensor] = []
        for own in _stretches(len(log_probs), max(1, _CODES_AT_ONCE // (seen * self._codes.shape[1]))):
            found = graph_search(
                self._graph,
                self._codes,
                log_probs[own],
                pool=config.pool,
                num_steps=config.num_steps,
                exclude=exclude[own],
                penalties=self._penalties,
            )
            parts.append(found.items)
        items = torch.cat(parts)
        positions = positions_in_lists(items, users.targets, users.num_targets)
        return ListedTargets(positions, items[:, :length])


def _stretches(num_users: int, at_once: int) -> Sequence[slice]:
    return [slice(start, start + at_once) for start in range(0, max(num_users, 1), at_once)]
