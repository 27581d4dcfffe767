"""Answers of a retriever's bundle: histories of users in, lists of items out.

Legend: B requests, N items, n items of a list.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch

from trec_semid.checkpoints.manifest import ListedBy, RetrieverFacts
from trec_semid.core.arrays import Flags, Ints
from trec_semid.metrics.target_positions import TopItems, UserItems, no_items
from trec_semid.serving.engine import (
    NotServedError,
    RetrieveAnswer,
    RetrieveAsked,
)
from trec_semid.serving.filters import ItemFilters
from trec_semid.serving.lists import Asked, Listers
from trec_semid.serving.of_bundle import BundleEngine
from trec_semid.serving.opened import Histories, OpenBundle


class ListRows(NamedTuple):
    """Lists to make, by rows of the bundle."""

    values: Ints
    """Item rows of histories, one after another, oldest first."""
    lengths: Ints
    """(B,), 0 of a user who gets what is popular."""
    masked: Ints
    """Item rows that may not be listed, one request after another."""
    num_masked: Ints
    """(B,)."""
    allowed: Flags | None = None
    """(B, N); None where all may be listed."""


@final
class RetrieveEngine(BundleEngine):
    """Models, items and popularity of one exported retriever; an `Engine`."""

    def __init__(self, bundle: OpenBundle) -> None:
        facts = bundle.manifest.retriever
        assert facts is not None, "opened as what the manifest says"
        super().__init__(bundle)
        self._facts: RetrieverFacts = facts
        self._filters = ItemFilters(bundle)
        self._listers = Listers(bundle, facts)

    def retrieve(self, asked: Sequence[RetrieveAsked]) -> list[RetrieveAnswer]:
        """See `Engine`."""
        if not asked:
            return []
        for each in asked:
            if each.n < 1:
                raise NotServedError(f"n: a list has one item at least (got {each.n}).")
        users = self.bundle.user_rows([each.user for each in asked])
        histories = self.bundle.histories([each.history for each in asked], users, None)
        forbidden = self.bundle.items.rows_of([item for each in asked for item in each.filters.forbidden])
        rows = self._rows(asked, histories, forbidden)
        found, unknown_allowed = self._filters.allowed([each.filters for each in asked])
        rows = rows._replace(allowed=found)
        answers: list[RetrieveAnswer | None] = [None] * len(asked)
        owners = np.repeat(np.arange(len(asked)), [len(each.filters.forbidden) for each in asked])
        unknown = histories.unknown + unknown_allowed
        unknown += np.bincount(owners[forbidden < 0], minlength=len(asked))
        unknown += (users < 0) & np.array([each.user is not None for each in asked])
        for search, length, chosen in self._by_search(asked):
            top = self.lists(_some(rows, chosen), length, search)
            for at, items, scores in zip(chosen, top.items.numpy(), top.scores.numpy(), strict=True):
                num = min(asked[at].n, int((items >= 0).sum()))
                basis = "history" if asked[at].history is not None else "stored"
                basis = basis if histories.lengths[at] and self._facts.members else "popularity"
                names = tuple(self.bundle.items.ids_of(items[:num]))
                answers[at] = RetrieveAnswer(
                    names, scores[:num].copy(), basis, int(unknown[at]), items[:num].copy()
                )
        return [answer for answer in answers if answer is not None]

    @torch.no_grad()
    def lists(
        self, rows: ListRows, length: int, search: ListedBy | None = None, *, widens: bool = True
    ) -> TopItems:
        """Return lists (B, length) of so many items, best first; -1 after the last.

        Args:
            rows: what to list for.
            length: of the lists.
            search: how; the bundle's own way where not given.
            widens: whether a beam is widened for who would get fewer items than exist.
        """
        search = search or self._facts.listed_by
        length = min(length, len(self.bundle.items))
        top = no_items(len(rows.lengths), length, torch.device("cpu"))
        known = rows.lengths > 0 if self._facts.members else np.zeros(len(rows.lengths), bool)
        ways: tuple[tuple[ListedBy, Flags], ...] = ((search, known), ("popularity", ~known))
        for way, is_own in ways:
            own = np.flatnonzero(is_own)
            if len(own):
                part = _some(rows, own)
                users = UserItems(
                    torch.zeros(0, dtype=torch.int64),
                    torch.zeros(len(own), dtype=torch.int64),
                    torch.from_numpy(part.masked),
                    torch.from_numpy(part.num_masked),
                )
                allowed = None if part.allowed is None else torch.from_numpy(part.allowed)
                found = self._listers.top_items(
                    way, Asked((part.values, part.lengths), users, allowed, widens), length
                )
                at = torch.from_numpy(own)
                top.scores[at], top.items[at] = found.scores, found.items
        return top

    def _rows(self, asked: Sequence[RetrieveAsked], histories: Histories, forbidden: Ints) -> ListRows:
        """Return histories, and what may not be listed: forbidden items, and those of the history."""
        own = np.zeros(len(asked), np.int64), np.zeros(0, np.int64)
        if self._facts.masks_history:
            own = histories.lengths, histories.values
        num_forbidden = np.array([len(each.filters.forbidden) for each in asked], np.int64)
        owners = np.concatenate(
            [np.repeat(np.arange(len(asked)), own[0]), np.repeat(np.arange(len(asked)), num_forbidden)]
        )
        masked = np.concatenate([own[1], forbidden])
        order = np.argsort(owners, kind="stable")
        order = order[masked[order] >= 0]
        num_masked = np.bincount(owners[order], minlength=len(asked))
        return ListRows(histories.values, histories.lengths, masked[order], num_masked)

    def _by_search(self, asked: Sequence[RetrieveAsked]) -> list[tuple[ListedBy, int, Ints]]:
        """Return ways and lengths of lists, and which requests are listed for alike.

        Raises:
            NotServedError: a way to list that the bundle does not have.
        """
        ways: list[ListedBy] = [self._way(each.search) for each in asked]
        for at, (way, each) in enumerate(zip(ways, asked, strict=True)):
            # An index knows nothing of filters, and a list must hold all that they leave.
            if way == "index" and (each.filters.allowed is not None or each.filters.fields):
                ways[at] = "exact"
        lengths = [each.n for each in asked]
        if (merge := self._facts.merge) is not None:
            # Variety is chosen among what interests list, so that a list depends on how long theirs are.
            lengths = [
                max(n, merge.length) if way == "merged" else n for way, n in zip(ways, lengths, strict=True)
            ]
        alike: dict[tuple[ListedBy, int], list[int]] = {}
        for at, (way, length) in enumerate(zip(ways, lengths, strict=True)):
            alike.setdefault((way, length if way == "merged" else 0), []).append(at)
        return [
            (way, max(lengths[at] for at in own), np.array(own, np.int64)) for (way, _), own in alike.items()
        ]

    def _way(self, asked: str | None) -> ListedBy:
        if asked is None:
            return self._facts.listed_by
        for way in self._listers.ways:
            if way == asked:
                return way
        have = ", ".join(self._listers.ways)
        raise NotServedError(f"search = '{asked}' is not in this bundle. It lists by: {have}.")


def _some(rows: ListRows, chosen: Ints) -> ListRows:
    """Return what is asked of some requests, (b,) of B."""
    values, lengths = _parts(rows.values, rows.lengths, chosen)
    masked, num_masked = _parts(rows.masked, rows.num_masked, chosen)
    allowed = None if rows.allowed is None else rows.allowed[chosen]
    return ListRows(values, lengths, masked, num_masked, allowed)


def _parts(values: Ints, lengths: Ints, chosen: Ints) -> tuple[Ints, Ints]:
    is_chosen = np.zeros(len(lengths), bool)
    is_chosen[chosen] = True
    # The chosen ascend, so what is taken in order is theirs in order.
    return values[np.repeat(is_chosen, lengths)], lengths[chosen]
