"""How a bundle lists: all items scored, a beam over codes, what codes propose scored, or popularity.

Legend: B users, N items, C proposed items, n items of a list.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, final

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from trec_semid.checkpoints.manifest import ListedBy, RetrieverFacts
from trec_semid.core.arrays import Ints
from trec_semid.core.errors import DataError
from trec_semid.data.ragged import positions
from trec_semid.layers.tuple_trie import TupleTrie
from trec_semid.metrics.target_positions import ChunkScorer, TopItems, UserItems, list_top_items
from trec_semid.models.queries import Queries
from trec_semid.search.ann import Indexed, IndexSearch
from trec_semid.search.beam import decode_items
from trec_semid.search.code_prior import CodePrior
from trec_semid.search.exact import mean_scores
from trec_semid.search.interests import InterestsConfig, InterestSearch, scores_of_merged
from trec_semid.search.retrieved import Retrieved, best_items, unlisted_rows
from trec_semid.serving.members import Said, ServedModel
from trec_semid.serving.opened import OpenBundle


class Asked(NamedTuple):
    """B users of a list."""

    read: tuple[Ints, Ints]
    """Item rows of histories, one after another, and (B,) lengths."""
    users: UserItems
    """What may not be listed."""
    allowed: Tensor | None
    """(B, N) bool of what may be; None for all."""
    widens: bool
    """Whether a beam is widened for who would get fewer items than exist."""


_WIDEST_TOGETHER = 4096
"""Beams of more are those of one user at a time."""


@final
class Listers:
    """The models of a bundle and what lists by them."""

    def __init__(self, bundle: OpenBundle, facts: RetrieverFacts) -> None:
        """Open the models.

        Args:
            bundle: that is served.
            facts: how it lists.

        Raises:
            DataError: what it holds is not what the manifest says.
        """
        self._facts, self.num_items = facts, len(bundle.items)
        self.members = [ServedModel(bundle, member, facts.max_len) for member in facts.members]
        of_items = bundle.arrays(facts.items.file)
        if any(of_items[name].shape != (self.num_items,) for name in ("counts", "penalties")):
            raise DataError("not one number an item", file=bundle.uri, field=facts.items.file)
        self._counts = torch.from_numpy(np.asarray(of_items["counts"]))
        self._penalties = torch.from_numpy(np.asarray(of_items["penalties"]))
        self._index, self._merge = self._opened(bundle), _merge_of(bundle, facts)

    @property
    def ways(self) -> tuple[ListedBy, ...]:
        """How lists can be asked for, the bundle's own way first."""
        can_score = bool(self.members) and all(member.scores_items for member in self.members)
        others: tuple[ListedBy, ...] = ("exact",) if can_score and self._facts.listed_by != "exact" else ()
        return (self._facts.listed_by, *others, *(() if self._index is None else ("index",)))

    def top_items(self, way: ListedBy, asked: Asked, length: int) -> TopItems:
        """Return (B, length) lists, made one way or another."""
        match way:
            case "popularity":
                return self._scored(self._popularity(len(asked.users.num_masked)), asked, length)
            case "exact":
                queries = [member.queries(member.read(*asked.read)) for member in self.members]
                catalogues = [member.catalogue for member in self.members]
                return self._scored(mean_scores(catalogues, queries, self._penalties), asked, length)
            case "merged":
                return self._merged(asked, length)
            case "beam":
                found = self._beam(self.members[0].read(*asked.read), asked, length, length)
                return TopItems(found.scores, found.items)
            case "two_stage":
                return self._two_stage(asked, length)
            case "index":
                return self._by_index(asked, length)

    def _opened(self, bundle: OpenBundle) -> IndexSearch | None:
        """Return the index, where there is one.

        Raises:
            DataError: it is none, or not over these items.
        """
        facts = self._facts.index
        if facts is None:
            return None
        if len(self.members) != 1 or self.members[0].catalogue.vectors is None:
            raise DataError("an index of what has no vectors", file=bundle.uri, field=facts.file)
        try:
            config = TypeAdapter(Indexed).validate_python(facts.settings)
        except ValidationError as error:
            problem = f"not an index: {error.errors()[0]['msg']}"
            raise DataError(problem, file=bundle.uri, field=facts.file) from None
        return IndexSearch(config, self.members[0].catalogue, self._penalties, bundle.arrays(facts.file))

    def _merged(self, asked: Asked, length: int) -> TopItems:
        """Return the merged lists of every user's interests; scores are those of the interest that lists."""
        assert self._merge is not None, "opened where lists are merged"
        member = self.members[0]
        queries = member.queries(member.read(*asked.read), weighs_interests=True)
        search = InterestSearch(_OfAllowed(self, asked.allowed), *self._merge)
        lists = search.lists(queries, asked.users, length)
        merged = search.merge(lists, queries.interest_log_probs, length)
        return TopItems(scores_of_merged(lists, merged), merged.items)

    def of_interests(self, queries: Sequence[Queries], asked: Asked, length: int) -> TopItems:
        """Return (B, length) lists of what scores as users of one vector do."""
        catalogues = [member.catalogue for member in self.members]
        return self._scored(mean_scores(catalogues, queries, self._penalties), asked, length)

    def _by_index(self, asked: Asked, length: int) -> TopItems:
        """Return what the index lists; for a user with filters, or with too short a list, all are scored."""
        assert self._index is not None, "asked where there is one"
        queries = self.members[0].queries(self.members[0].read(*asked.read))
        top = self._index.top_items([queries], asked.users, length)
        is_scored = (top.items < 0).any(1)
        if asked.allowed is not None:
            is_scored |= ~asked.allowed.all(1)
        if bool(is_scored.any()):
            score = mean_scores([self.members[0].catalogue], [queries], self._penalties)
            for listed, scored in zip(top, self._scored(score, asked, length), strict=True):
                listed[is_scored] = scored[is_scored]
        return top

    def _popularity(self, num_users: int) -> ChunkScorer:
        def score(items: slice) -> Tensor:
            """Return (B, n): counts, the same for everyone."""
            return self._counts[items].float().expand(num_users, -1).clone()

        return score

    def _scored(self, score: ChunkScorer, asked: Asked, length: int) -> TopItems:
        allowed = asked.allowed

        def of_allowed(items: slice) -> Tensor:
            """Return (B, n), -inf of what may not be listed."""
            scores = score(items)
            if allowed is None:
                return scores
            # Of users with several interests each of these is a row.
            barred = ~allowed[:, items].repeat_interleave(len(scores) // len(allowed), 0)
            return scores.masked_fill_(barred, -torch.inf)

        return list_top_items(of_allowed, asked.users, self.num_items, list_length=length)

    @property
    def _trie(self) -> TupleTrie:
        return self.members[0].trie

    @cached_property
    def _gains(self) -> tuple[Tensor, ...] | None:
        share = self._facts.code_prior_share
        return None if share is None else CodePrior(self._counts, share).of_nodes(self._trie)

    def _beam(self, said: Said, asked: Asked, length: int, needed: int) -> Retrieved:
        """Return lists of the tuples that a beam finds, widened for who would get fewer than are needed."""
        width = self._facts.beam_width
        assert width, "an export without is none of a beam"
        found = self._beam_of(said, torch.arange(len(asked.users.num_masked)), asked, (width, length))
        listable = self._num_listable(asked).clamp(max=needed) if asked.widens else found.lengths
        while width < self._trie.num_tuples and bool((found.lengths < listable).any()):
            width = min(4 * width, self._trie.num_tuples)
            short = (found.lengths < listable).nonzero().squeeze(1)
            for some in short.split(1 if width > _WIDEST_TOGETHER else len(short)):
                again = self._beam_of(said, some, asked, (width, length))
                for whole, part in zip(found, again, strict=True):
                    whole[some] = part
        return found

    def _beam_of(self, said: Said, some: Tensor, asked: Asked, sizes: tuple[int, int]) -> Retrieved:
        """Return the lists of some (b,) of the users, for a width and a length."""
        exclude, before = unlisted_rows(asked.users)[some], None
        if asked.allowed is not None:
            # What is excluded counts here too: else a node would seem to have items that may be listed.
            may = torch.nn.functional.pad(asked.allowed[some], (0, 1))
            may.scatter_(1, exclude.where(exclude >= 0, self.num_items), False)
            before = torch.nn.functional.pad(may[:, self._trie.items].cumsum(1, dtype=torch.int32), (1, 0))
        width, length = sizes
        return decode_items(
            self._trie,
            len(some),
            self.members[0].next_log_probs(said, some),
            width=width,
            num_items=length,
            exclude=exclude if exclude.shape[1] else None,
            gains=self._gains,
            allowed=before,
        )

    def _num_listable(self, asked: Asked) -> Tensor:
        """Return (B,) how many items may be listed."""
        num_users, users = len(asked.users.num_masked), asked.users
        may = asked.allowed
        if may is None:
            may = torch.ones(1, self.num_items, dtype=torch.bool).expand(num_users, -1)
        owners = torch.repeat_interleave(users.num_masked)
        keys = (owners * self.num_items + users.masked).unique()
        of = keys // self.num_items
        gone = may[of, keys % self.num_items].long()
        return may.sum(1) - torch.zeros(num_users, dtype=torch.int64).index_add_(0, of, gone)

    def _two_stage(self, asked: Asked, length: int) -> TopItems:
        """Return what codes propose, in the order of item vectors and codes."""
        member = self.members[0]
        said = member.read(*asked.read)
        candidates = max(length, self._facts.candidates or length)
        proposed = self._beam(said, asked, min(candidates, self.num_items), length)
        rows = proposed.items.clamp(min=0)
        vectors, queries = member.catalogue.vectors, said["vectors"]
        assert vectors is not None, "codes propose to vectors"
        scores = torch.einsum("bcd,bd->bc", vectors[rows], queries) - self._penalties[rows]
        scores = scores + member.code_share * proposed.scores
        scores = scores.masked_fill(proposed.items < 0, -torch.inf)
        best = best_items(scores, _told_apart(proposed.items), length)
        return TopItems(best.scores, best.items)


@final
class _OfAllowed:
    """Lists for interests what their users may be given; a `VectorSearch`."""

    is_shared = False

    def __init__(self, listers: Listers, allowed: Tensor | None) -> None:
        self._listers, self._allowed, self.num_items = listers, allowed, listers.num_items

    def top_items(self, queries: Sequence[Queries], users: UserItems, length: int) -> TopItems:
        """See there."""
        nothing = np.zeros(0, np.int64)
        asked = Asked((nothing, nothing), users, self._allowed, widens=False)
        return self._listers.of_interests(queries, asked, length)


def _merge_of(bundle: OpenBundle, facts: RetrieverFacts) -> tuple[InterestsConfig, Tensor | None] | None:
    """Return how lists of interests are merged, and (N, V) categories; None where they are not.

    Raises:
        DataError: what is merged has no vectors, or there is no such field.
    """
    merge = facts.merge
    if facts.listed_by != "merged":
        return None
    if merge is None or len(facts.members) != 1 or facts.members[0].vectors is None:
        raise DataError("lists of interests without vectors", file=bundle.uri, field="retriever.merge")
    config = InterestsConfig(merge=merge.kind, diversity_field=merge.field, diversity_weight=merge.weight)
    if merge.kind != "diversity":
        return config, None
    starts, lengths, values = bundle.field("item", merge.field or "").column
    table = np.full((len(lengths), max(1, int(lengths.max(initial=0)))), -1, np.int64)
    numbers = np.asarray(values)[positions(starts, lengths)]
    table[np.arange(table.shape[1]) < lengths[:, None]] = np.where(numbers > 0, numbers, -1)
    return config, torch.from_numpy(table)


def _told_apart(items: Tensor) -> Tensor:
    """Return (B, C) rows, with numbers of their own for what is none: ties must be told apart."""
    apart = torch.arange(items.shape[1]) + 2**31 - 1 - items.shape[1]
    return torch.where(items < 0, apart, items)
