"""One list of the lists of a user's interests: by score, by quotas, or for variety of categories.

Every interest's first N items of the whole catalogue come from a search that takes it for a user of its own,
so they are exact where the search is. The merged list takes its items from these N each: a list of N by score
or by quotas never asks an interest for more.

Legend: B users, M interests of a user, N length of the lists, G candidates (distinct items of a user's
lists), V categories of an item, D width.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, Self, final

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn.functional import pad

from trec_semid.core.config import Config
from trec_semid.metrics.interests import Candidates, union_of_lists
from trec_semid.metrics.target_positions import ListedTargets, TopItems, UserItems, positions_in_lists
from trec_semid.models.queries import Queries
from trec_semid.search.retrieved import unlisted_rows

Merge = Literal["score", "weighted", "quota", "diversity"]
_PAIRS_AT_ONCE = 1 << 22
"""Merged items and items of lists that are held against each other: 32 MiB."""


class InterestsConfig(Config):
    """How the lists of a user's interests become one."""

    merge: Merge | None = None
    """`score`: the interest that scores an item highest counts, however probable it is. `weighted`: the same
    of score + log-probability of the interest. `quota`: places are dealt out by the interests' probabilities.
    `diversity`: scores and categories that the list does not have yet. Where not given `weighted` if the
    method's score counts probabilities, else `score`."""
    diversity_field: str | None = None
    """Item field with the categories, for `diversity`."""
    diversity_weight: NonNegativeFloat = 0.25
    """Worth of each listed item of another category, on the scale of scores, for `diversity`."""

    @property
    def needs_lists(self) -> bool:
        """Whether every interest's own list is needed; else one look at all scores is enough."""
        return self.merge in ("quota", "diversity")

    def settled(self, *, weighs_interests: bool) -> "InterestsConfig":
        """Return this with the merge that holds.

        Args:
            weighs_interests: of the method, see `Retriever`.
        """
        if self.merge is not None:
            return self
        return self.model_copy(update={"merge": "weighted" if weighs_interests else "score"})

    def counted(self, queries: Queries) -> Queries:
        """Return queries with the log-probabilities of interests that count in scores.

        An interest of log-probability -inf lists nothing, also where the others all count alike.
        """
        log_probs = queries.interest_log_probs
        if log_probs is None or self.merge == "weighted":
            return queries
        absent = torch.zeros_like(log_probs).masked_fill_(log_probs == -torch.inf, -torch.inf)
        return queries._replace(interest_log_probs=absent)


class InterestLists(NamedTuple):
    """The first items of the whole catalogue of every interest by itself."""

    items: Tensor
    """(B, M, N) int64 item rows, best first; -1 after the last."""
    scores: Tensor
    """(B, M, N) float32 without log-probabilities of interests; -inf after the last."""


class MergedLists(NamedTuple):
    """One list a user."""

    items: Tensor
    """(B, N) int64 item rows, best first; -1 after the last."""
    listed_by: Tensor
    """(B, N) int64 number of the interest that each item comes from; -1 after the last."""


class VectorSearch(Protocol):
    """Lists the catalogue for users with one vector each: `search.exact`, `search.ann`."""

    is_shared: bool
    num_items: int

    def top_items(self, queries: Sequence[Queries], users: UserItems, length: int) -> TopItems:
        """Return lists of so many items; on several ranks all of them ask together."""
        ...


@final
class InterestSearch:
    """Lists the catalogue for each interest by itself, and merges."""

    def __init__(
        self, search: VectorSearch, config: InterestsConfig, categories: Tensor | None = None
    ) -> None:
        """Take what lists for one vector.

        Args:
            search: of the catalogue.
            config: how lists are merged.
            categories: (N_all, V) category ids of all items, filled up with -1; for `diversity`.
        """
        self._search, self._config, self._categories = search, config, categories
        self.is_shared = search.is_shared

    def lists(self, queries: Queries, users: UserItems, length: int) -> InterestLists:
        """Return the lists of every interest of this rank's users; a user of one vector has one interest.

        Args:
            queries: vectors (B, M, D) or (B, D), and what else scores count.
            users: items that are not listed.
            length: of the lists; these have no more places than there are items.
        """
        length = min(length, self._search.num_items)
        vectors = queries.vectors
        assert vectors is not None, "a config without item vectors is refused"
        vectors = vectors.unsqueeze(1) if vectors.dim() == 2 else vectors
        num_interests = vectors.shape[1]
        by_codes = queries.code_log_probs
        each = Queries(
            vectors.flatten(0, 1),
            None if by_codes is None else by_codes.repeat_interleave(num_interests, dim=0),
        )
        top = self._search.top_items([each], _of_each_interest(users, num_interests), length)
        shape = (len(vectors), num_interests, length)
        items, scores = top.items.view(shape), top.scores.view(shape)
        log_probs = queries.interest_log_probs
        if log_probs is not None:
            is_absent = (log_probs == -torch.inf).unsqueeze(2)
            items, scores = items.masked_fill(is_absent, -1), scores.masked_fill(is_absent, -torch.inf)
        return InterestLists(items, scores)

    def merge(self, lists: InterestLists, log_probs: Tensor | None, length: int) -> MergedLists:
        """Return one list of every user's.

        Args:
            lists: of all interests.
            log_probs: (B, M) of the interests; None where all count alike.
            length: of the merged lists, as was asked of the interests' own.
        """
        merged = self._merged(lists, log_probs)
        missing = (0, length - merged.items.shape[1])
        return MergedLists(pad(merged.items, missing, value=-1), pad(merged.listed_by, missing, value=-1))

    def _merged(self, lists: InterestLists, log_probs: Tensor | None) -> MergedLists:
        candidates = union_of_lists(lists.items)
        match self._config.merge:
            case "score" | None:
                return merge_by_score(candidates, lists.scores)
            case "weighted":
                weights = 0 if log_probs is None else log_probs.unsqueeze(2)
                return merge_by_score(candidates, lists.scores + weights)
            case "quota":
                return merge_by_quota(candidates, log_probs)
            case "diversity":
                assert self._categories is not None, "a config without a field is refused"
                # Absent items, of row -1, read the last item's categories, and are never listed.
                categories = self._categories[candidates.items]
                return merge_by_diversity(candidates, lists.scores, categories, self._config.diversity_weight)

    def places(self, queries: Queries, users: UserItems, length: int) -> ListedTargets:
        """Return where targets stand in the merged lists of so many items; beyond these they are UNLISTED.

        Args:
            queries: of this rank's users.
            users: their targets, and items that are not listed.
            length: of the lists.
        """
        merged = self.merge(self.lists(queries, users, length), queries.interest_log_probs, length)
        return ListedTargets(positions_in_lists(merged.items, users.targets, users.num_targets), merged.items)


def scores_of_merged(lists: InterestLists, merged: MergedLists) -> Tensor:
    """Return (B, N) float32: the score of each merged item in the list it comes from; -inf after the last.

    Args:
        lists: of all interests.
        merged: of these.
    """
    num_users, _, length = lists.items.shape
    scores = torch.full(merged.items.shape, -torch.inf, device=merged.items.device)
    at_once = max(1, _PAIRS_AT_ONCE // max(length * merged.items.shape[1], 1))
    for first in range(0, num_users, at_once):
        own = slice(first, first + at_once)
        turn = merged.listed_by[own].clamp(min=0).unsqueeze(2).expand(-1, -1, length)
        is_it = lists.items[own].gather(1, turn) == merged.items[own].unsqueeze(2)
        found = lists.scores[own].gather(1, turn).masked_fill_(~is_it, -torch.inf).amax(2)
        scores[own] = found.masked_fill_(merged.items[own] < 0, -torch.inf)
    return scores


def merge_by_score(candidates: Candidates, scores: Tensor) -> MergedLists:
    """Take candidates by their highest score over the interests that list them; of equal ones the lower row.

    Args:
        candidates: of the lists.
        scores: (B, M, N) of the lists' items; -inf where there is none.
    """
    length = candidates.length
    best, listed_by = _best_interest(candidates, scores)
    # Candidates come in ascending order of rows, and a stable sort keeps it among equal scores.
    ordered, at = best.sort(dim=1, descending=True, stable=True)
    missing = (0, length - at.shape[1])  # negative where there are more candidates than places
    items = candidates.items.gather(1, at).masked_fill_(ordered == -torch.inf, -1)
    owners = listed_by.gather(1, at).masked_fill_(ordered == -torch.inf, -1)
    return MergedLists(pad(items, missing, value=-1), pad(owners, missing, value=-1))


def merge_by_quota(candidates: Candidates, log_probs: Tensor | None) -> MergedLists:
    """Deal places out by D'Hondt's divisors; each goes to its interest's best item that is not listed yet.

    Place k goes to argmax_m p_m / (s_m + 1), s_m the places that interest m has so far, of equal ones to the
    lower m; an interest without an unlisted item is passed over. Every prefix of the list respects quotas.
    Source: the divisor method of D'Hondt, as used for seats of a parliament.

    Args:
        candidates: of the lists, each of which has N items where the catalogue has.
        log_probs: (B, M) log p_m; None where all are alike.
    """
    places, length, device = candidates.places, candidates.length, candidates.places.device
    num_users, _, num_interests = places.shape
    # In float64, so that quotients which ought to be equal are.
    probs = torch.ones(num_users, num_interests, dtype=torch.float64, device=device)
    if log_probs is not None:
        probs = log_probs.double().exp()
    left, seats = _ListsLeft.of(candidates), torch.zeros_like(probs)
    users = torch.arange(num_users, device=device)
    items = torch.full((num_users, length), -1, device=device)
    listed_by = torch.full_like(items, -1)
    for place in range(length):
        quotients = (probs / (seats + 1)).masked_fill_(left.num_items == 0, -1.0)
        turn = quotients.argmax(1)  # the first of equal ones
        exists = left.num_items[users, turn] > 0
        chosen = left.first(turn)
        items[:, place] = torch.where(exists, candidates.items[users, chosen], -1)
        listed_by[:, place] = torch.where(exists, turn, -1)
        seats[users, turn] += exists
        left.remove(places[users, chosen].masked_fill(~exists.unsqueeze(1), length))
    return MergedLists(items, listed_by)


class _ListsLeft(NamedTuple):
    """What interests' lists have left: doubly linked, so that an item goes out of all of them in M steps.

    Slot N of a list is before its first place and behind its last, slot N + 1 is linked to itself alone.
    """

    ahead: Tensor
    """(B, M, N + 2) int64 slot of the next item that is left."""
    back: Tensor
    """(B, M, N + 2) int64 slot of the one before."""
    numbers: Tensor
    """(B, M, N + 1) int64 which candidate stands there."""
    num_items: Tensor
    """(B, M) int64 items that are left."""

    @classmethod
    def of(cls, candidates: Candidates) -> Self:
        """Link all places of the lists."""
        places, length = candidates.places.transpose(1, 2), candidates.length
        slots = torch.arange(length + 2, device=places.device)
        ahead, back = (slots + 1) % (length + 1), (slots - 1) % (length + 1)
        ahead[-1] = back[-1] = length + 1
        shape = (*places.shape[:2], length + 2)
        numbers = places.new_zeros((*places.shape[:2], length + 1))
        numbers.scatter_(2, places, torch.arange(places.shape[2], device=places.device).expand_as(places))
        num_items = (places < length).sum(2)
        return cls(ahead.expand(shape).clone(), back.expand(shape).clone(), numbers, num_items)

    def first(self, turn: Tensor) -> Tensor:
        """Return (B,) candidates: the first that the list of one interest has left; any where none is.

        Args:
            turn: (B,) numbers of interests.
        """
        users = torch.arange(len(turn), device=turn.device)
        return self.numbers[users, turn, self.ahead[users, turn, -2]]

    def remove(self, places: Tensor) -> None:
        """Take an item out of the lists.

        Args:
            places: (B, M) of it in each list; N where a list lacks it.
        """
        length = self.numbers.shape[2] - 1
        slots = torch.where(places < length, places, length + 1).unsqueeze(2)
        before, after = self.back.gather(2, slots), self.ahead.gather(2, slots)
        self.ahead.scatter_(2, before, after)
        self.back.scatter_(2, after, before)
        self.num_items.sub_((places < length).long())


def merge_by_diversity(
    candidates: Candidates, scores: Tensor, categories: Tensor, weight: float
) -> MergedLists:
    """Take, place by place, the candidate of the highest score plus what its category adds to the list.

    value(i) = f(u, i) + weight * |{listed k: i and k have no category in common}|, f the highest score over
    the interests that list i; of equal values the lower row. Items without a category share one, 'none'.
    Source: Cen et al., "Controllable Multi-Interest Framework for Recommendation", KDD 2020, section 3.3,
    algorithm 1; as their code has it, f is over the interests that list the item.

    Args:
        candidates: of the lists.
        scores: (B, M, N) of the lists' items; -inf where there is none.
        categories: (B, G, V) category ids of the candidates, filled up with -1.
        weight: lambda.
    """
    length = candidates.length
    best, interests = _best_interest(candidates, scores)
    values = best.double()
    users = torch.arange(len(values), device=values.device)
    items = torch.full((len(values), length), -1, device=values.device)
    listed_by = torch.full_like(items, -1)
    of_items, is_marked = _with_none(categories)
    every, flat = is_marked.shape[1] - 1, of_items.flatten(1)
    for place in range(min(length, values.shape[1])):
        chosen = values.argmax(1)  # the first of equal ones, which is the lower row
        exists = values[users, chosen] > -torch.inf
        items[:, place] = torch.where(exists, candidates.items[users, chosen], -1)
        listed_by[:, place] = torch.where(exists, interests[users, chosen], -1)
        theirs = of_items[users, chosen]
        is_marked.scatter_(1, theirs, value=True)
        is_marked[:, every] = False  # what only fills up is in common with nothing
        shares = is_marked.gather(1, flat).view(of_items.shape).any(2)
        is_marked.scatter_(1, theirs, value=False)
        values += weight * (~shares).double()
        values[users, chosen] = -torch.inf
    return MergedLists(items, listed_by)


def _with_none(categories: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, G, V) categories with one more, 'none', for items that have none, and no marks (B, C + 2).

    What fills up is the last one, C + 1.
    """
    num_categories = 1 + max(-1, int(categories.max())) if categories.numel() else 0
    own = torch.where(categories < 0, num_categories + 1, categories)
    own[:, :, 0] = torch.where((categories < 0).all(2), num_categories, own[:, :, 0])
    marks = torch.zeros(len(own), num_categories + 2, dtype=torch.bool, device=own.device)
    return own, marks


def _best_interest(candidates: Candidates, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return each candidate's (B, G) highest score over the lists that have it, and whose it is.

    Of interests with equal scores it is the first's.
    """
    padded = pad(scores, (0, 1), value=-torch.inf).transpose(1, 2)
    table = padded.gather(1, candidates.places)
    interests = table.argmax(2)
    return table.gather(2, interests.unsqueeze(2)).squeeze(2), interests


def _of_each_interest(users: UserItems, num_interests: int) -> UserItems:
    """Return B * M users, each with what its user may not be listed, and without targets."""
    rows = unlisted_rows(users).repeat_interleave(num_interests, dim=0)
    exists = rows >= 0
    nothing = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    return UserItems(users.targets[:0], nothing, rows[exists], exists.sum(1))
