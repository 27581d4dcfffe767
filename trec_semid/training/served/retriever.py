"""A finished retriever as it goes to serving: its models, and the lists that they make themselves.

Legend: N items, n of a stretch, B users, T their targets, F tokens of an item, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from trec_semid.checkpoints.folder import best_step
from trec_semid.core.arrays import Float32s, Ints
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.sequences import EvaluationRows
from trec_semid.evaluation.target_positions import distinct_targets, read_target_positions
from trec_semid.metrics.target_positions import TopItems, UserItems, list_top_items
from trec_semid.models.exported import Exported
from trec_semid.models.item_tokens import Listed
from trec_semid.models.queries import Queries, TwoStageQueries
from trec_semid.models.retriever import SearchKind
from trec_semid.runtime.ranks import Ranks
from trec_semid.search.ann import IndexSearch
from trec_semid.search.beam import BeamSearch
from trec_semid.search.catalogue import Catalogue
from trec_semid.search.exact import ExactSearch
from trec_semid.search.interests import InterestsConfig, InterestSearch, scores_of_merged
from trec_semid.search.retrieved import agreement, unlisted_rows
from trec_semid.search.two_stage import TwoStageSearch
from trec_semid.training.finished import FinishedRun
from trec_semid.training.retrieval.evaluation.asked import AskedModel, code_prior_of, penalties_of
from trec_semid.training.retrieval.evaluation.listing import less_gains
from trec_semid.training.retrieval.finished import Member, members_of
from trec_semid.training.retrieval.inputs import RetrieveInputs
from trec_semid.training.retrieval.setup import RetrieveConfig
from trec_semid.training.served.kept import keep_rows
from trec_semid.training.served.stretched import place_stretched

_ITEMS_AT_ONCE = 65_536
_USERS_AT_ONCE = 256


class TestUsers(NamedTuple):
    """The first users of the test split with a history, and where the run lists their targets."""

    histories: Ints
    """Item rows, one user's after another, as many as a model reads."""
    history_lengths: Ints
    """(B,)."""
    masked: Ints
    """Item rows that the run does not list, likewise."""
    num_masked: Ints
    """(B,)."""
    targets: Ints
    """(T,) item rows, user after user."""
    num_targets: Ints
    """(B,)."""
    positions: Ints
    """(T,) from 1."""


@final
@dataclass
class ServedMember:
    """One model that scores."""

    run: FinishedRun
    config: RetrieveConfig
    asked: AskedModel
    _catalogue: Catalogue | None = None

    @property
    def catalogue(self) -> Catalogue:
        """What items are scored by; there once it is built."""
        assert self._catalogue is not None, "built before lists are asked for"
        return self._catalogue

    @torch.no_grad()
    def build_catalogue(self, folder: str, number: int, read: Callable[[int, int], Tensor]) -> None:
        """Let the model take note of its item vectors, which lie in a file and are mapped into memory.

        Args:
            folder: on a local disk, for the file.
            number: which of the models it is.
            read: gives (n, D) vectors of consecutive items, as `vectors` does.
        """
        model, num_items = self.asked.model, self.asked.data.num_items
        vectors = None
        if model.has_item_vectors:
            kept = keep_rows(f"{folder}/vectors-{number}", read, num_items, _ITEMS_AT_ONCE)
            vectors = kept.to(self.asked.ranks.device)
            model.catalogue_facts = model.note_catalogue(vectors, slice(0, num_items))
        live = model.items.live if model.predicts_codes else None
        self._catalogue = Catalogue(
            num_items, 0, vectors, live.codes if live else None, live.tables().detach() if live else None
        )

    @property
    def exported(self) -> Exported:
        """Its programs."""
        live = self.asked.model.items.live
        return self.asked.model.exported(live.tables().detach().clone() if live else None)

    def queries(self, histories: Ragged, own: Ints) -> Queries:
        """Return what it scores items with, of (b,) users, as its own evaluation counts interests."""
        interests = self.config.evaluation.interests_of(self.config.retriever)
        return interests.counted(self.asked.queries(histories, own))

    @property
    def token_shape(self) -> tuple[int, int]:
        """F and D."""
        _, number, width = self.tokens(0, 1).shape
        return number, width

    def tokens(self, first: int, last: int) -> Tensor:
        """Return (n, F, D), what is read of consecutive items in a history."""
        model = self.asked.model
        return self._of_items(first, last, lambda listed: model.read_of(model.items(listed), listed.rows))

    def vectors(self, first: int, last: int) -> Tensor:
        """Return (n, D), what consecutive items are scored by."""
        model = self.asked.model
        return self._of_items(first, last, lambda listed: model.item_vectors(model.items(listed)))

    @torch.no_grad()
    def _of_items(self, first: int, last: int, ask: Callable[[Listed], Tensor]) -> Tensor:
        """Return (n, ...) numbers of items, on the CPU, a chunk at a time from the first one on."""
        found: Tensor | None = None
        for start in range(first, last, _ITEMS_AT_ONCE):
            stop = min(start + _ITEMS_AT_ONCE, last)
            part = ask(self.asked.feed.chunk(start, stop)).float().cpu()
            if found is None:  # filled in place: chunks that are joined at the end take the memory twice
                found = part.new_empty(last - first, *part.shape[1:])
            found[start - first : stop - first] = part
        assert found is not None, "there are items"
        return found


@final
class ServedRetriever:
    """What of a finished retrieve run is served; one that learns nothing itself has members, or none."""

    def __init__(
        self, run: FinishedRun, config: RetrieveConfig, inputs: RetrieveInputs, ranks: Ranks
    ) -> None:
        """Take a run.

        Args:
            run: finished.
            config: of it.
            inputs: that it was trained on.
            ranks: this process among its peers.
        """
        self.run, self.config, self.data, self.ranks = run, config, inputs.data, ranks
        self.members: tuple[ServedMember, ...] = ()

    def place(self) -> None:
        """Read the models that score; all ranks together.

        Raises:
            ConfigError: a run was trained on other data than are there now.
            CheckpointError: a checkpoint cannot be read.
        """
        members = members_of(self.config, {})
        members = [Member(self.run, self.config)] if self.config.learns else members
        self.members = tuple(
            ServedMember(member.run, member.config, place_stretched(member, self.ranks)) for member in members
        )

    @property
    def step(self) -> int | None:
        """Of the best checkpoint; None of what learns nothing itself."""
        return best_step(self.run.checkpoints) if self.config.learns else None

    @property
    def run_listed_by(self) -> str:
        """How the run's own evaluation listed."""
        evaluation = self.config.evaluation
        search = self.config.retriever.search(evaluation.search)
        if search == "exact" and evaluation.has_index:
            return "index"
        return "merged" if search == "exact" and self._interests.needs_lists else search

    @property
    def listed_by(self) -> SearchKind:
        """How a bundle lists: as the run, but that all items are scored where that is the same or better."""
        search = self.config.retriever.search(self.config.evaluation.search)
        if not self.members:
            return "popularity"
        can_score = all(member.asked.model.scores_catalogue for member in self.members)
        return search if search == "beam" or not can_score else "exact"

    def ways(self) -> dict[str, Any]:
        """Return how lists are made, as a manifest says it."""
        evaluation, prior = self.config.evaluation, self.config.evaluation.code_prior
        has_prior = self.listed_by != "exact" and evaluation.has_code_prior and prior is not None
        return {
            "listed_by": self.listed_by,
            "run_listed_by": self.run_listed_by,
            "max_len": self.config.sequences.max_len,
            "masks_history": evaluation.masks_history,
            "beam_width": evaluation.beam_width,
            "candidates": evaluation.candidates,
            "code_prior_share": prior.item_share if prior and has_prior else None,
        } | self._merge()

    def _merge(self) -> dict[str, Any]:
        """Return what a manifest says of lists that are merged."""
        merge = self._interests
        if self.listed_by != "exact" or not merge.needs_lists:
            return {}
        field = merge.diversity_field if merge.merge == "diversity" else None
        weight = merge.diversity_weight if field else 0.0
        length = max(self.config.evaluation.cutoffs)
        facts = {"kind": merge.merge, "field": field, "weight": weight, "length": length}
        return {"listed_by": "merged", "merge": facts}

    @property
    def _interests(self) -> InterestsConfig:
        return self.config.evaluation.interests_of(self.config.retriever)

    def _merging(self) -> InterestSearch:
        """Return what lists for every interest and merges."""
        field, categories = self._interests.diversity_field, None
        if field is not None:
            categories = torch.from_numpy(self.data.categories(field)).to(self.ranks.device)
        penalties = torch.from_numpy(self.penalties()).to(self.ranks.device)
        exact = ExactSearch([member.catalogue for member in self.members], penalties)
        return InterestSearch(exact, self._interests, categories)

    def shares_of(self, lists: TopItems, exact: TopItems) -> dict[str, float]:
        """Return `recall@n`: how much of the exact first n items lists (B, N) have, at the run's cutoffs."""
        return {
            f"recall@{cutoff}": float(agreement(lists.items[:, :cutoff], exact.items[:, :cutoff]).mean())
            for cutoff in self.config.evaluation.cutoffs
            if cutoff <= exact.items.shape[1]
        }

    def penalties(self) -> Float32s:
        """Return (N,) what is taken off scores where all items are scored."""
        evaluation, search = self.config.evaluation, self.config.evaluation.search
        penalties = penalties_of(self.data, evaluation.unseen_penalty, self.ranks)
        prior = code_prior_of(self.members[0].asked, evaluation) if self.config.learns else None
        if prior is not None and search in ("exact", "graph"):
            penalties = less_gains(penalties, prior, self.members[0].asked)
        return np.zeros(self.data.num_items, np.float32) if penalties is None else penalties.cpu().numpy()

    def known_events(self) -> tuple[Ints, Ints]:
        """Return user and item rows (E,) of all that users did, user after user."""
        sequences = self.data.sequences
        return np.repeat(np.arange(len(sequences.counts)), sequences.counts.sum(1)), sequences.items

    def test_users(self, number: int) -> TestUsers:
        """Return at most so many users; what they are to be given is not masked."""
        rows = distinct_targets(self.data.sequences.evaluation_rows("test", self.config.sequences.max_len))
        own = (
            np.flatnonzero(rows.histories.lengths)[:number]
            if self.members
            else np.arange(len(rows.users))[:number]
        )
        positions = read_target_positions(self.config.predictions_of(self.run.uri), "test").position
        starts = np.cumsum(rows.targets.lengths) - rows.targets.lengths
        at, _ = Ragged(starts, rows.targets.lengths, np.arange(len(positions))).take(own)
        targets = rows.targets.take(own)
        return TestUsers(
            *rows.histories.take(own), *self._masked(rows, own, targets), *targets, positions[at]
        )

    def is_one_vector(self, users: TestUsers) -> bool:
        """Whether a user is one vector, and no distribution over codes besides."""
        own = np.arange(min(1, len(users.history_lengths)))
        starts = np.cumsum(users.history_lengths) - users.history_lengths
        with torch.no_grad():
            said = self.members[0].queries(Ragged(starts, users.history_lengths, users.histories), own)
        return said.vectors is not None and said.vectors.dim() == 2 and said.code_log_probs is None

    def lists(
        self,
        users: TestUsers,
        length: int,
        index: IndexSearch | None = None,
        *,
        way: str | None = None,
        most_users: int | None = None,
    ) -> TopItems:
        """Return the lists (B, length) that the models make, or an index, without what is masked.

        Args:
            users: to list for.
            length: of the lists.
            index: that lists instead of the models.
            way: how the models list; the bundle's way where not given.
            most_users: of these the first so many.
        """
        starts, firsts = (np.cumsum(each) - each for each in (users.history_lengths, users.num_masked))
        histories = Ragged(starts, users.history_lengths, users.histories)
        masked = Ragged(firsts, users.num_masked, users.masked)
        parts: list[TopItems] = []
        num_users = min(len(starts), most_users or len(starts))
        for first in range(0, num_users, _USERS_AT_ONCE):
            own = np.arange(first, min(first + _USERS_AT_ONCE, num_users))
            nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(len(own), dtype=torch.int64)
            kept = [torch.from_numpy(part).to(self.ranks.device) for part in masked.take(own)]
            unlisted = UserItems(*(part.to(self.ranks.device) for part in nothing), *kept)
            if index is None:
                parts.append(self._list(way or self.listed_by, (histories, own), unlisted, length))
            else:
                with torch.no_grad():
                    queries = [member.queries(histories, own) for member in self.members]
                    parts.append(index.top_items(queries, unlisted, length))
        return TopItems(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))

    @torch.no_grad()
    def _list(self, way: str, asked_for: tuple[Ragged, Ints], users: UserItems, length: int) -> TopItems:
        evaluation, (histories, own) = self.config.evaluation, asked_for
        match way:
            case "popularity":
                counts = torch.from_numpy(self.data.item_counts).float()
                scores = counts.expand(len(own), -1)
                return list_top_items(
                    lambda items: scores[:, items].clone(), users, len(counts), list_length=length
                )
            case "beam":
                member = self.members[0]
                live, width = member.asked.code_map, evaluation.beam_width
                assert width, "a beam has a width"
                search = BeamSearch(
                    live.codes, live.sizes, width, prior=code_prior_of(member.asked, evaluation)
                )
                asked = member.asked.model.next_log_probs(*member.asked.read(histories, own))
                found = search.retrieve(len(own), asked, users, length)
                return TopItems(found.scores, found.items)
            case "two_stage":
                return self._two_stage().top_items(self._proposing(histories, own), users, length)
            case "exact" if self._interests.needs_lists:
                merging, queries = self._merging(), self.members[0].asked.queries(histories, own)
                lists = merging.lists(queries, users, length)
                merged = merging.merge(lists, queries.interest_log_probs, length)
                return TopItems(scores_of_merged(lists, merged), merged.items)
            case _:
                penalties = torch.from_numpy(self.penalties()).to(self.ranks.device)
                search = ExactSearch([member.catalogue for member in self.members], penalties)
                queries = [member.queries(histories, own) for member in self.members]
                return search.top_items(queries, users, length)

    def _two_stage(self) -> TwoStageSearch:
        asked, evaluation = self.members[0].asked, self.config.evaluation
        live, candidates = asked.code_map, evaluation.candidates
        assert candidates, "it is what makes two stages"
        return TwoStageSearch(
            self.members[0].catalogue,
            live.codes,
            live.sizes,
            num_candidates=candidates,
            beam_width=evaluation.beam_width,
            penalties=penalties_of(self.data, evaluation.unseen_penalty, self.ranks),
            prior=code_prior_of(asked, evaluation),
        )

    def _proposing(self, histories: Ragged, own: Ints) -> TwoStageQueries:
        asked = self.members[0].asked
        return asked.model.two_stage_queries(*asked.read(histories, own))

    def _masked(self, rows: EvaluationRows, own: Ints, targets: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
        """Return what may not be listed, without targets, of (b,) users."""
        if not self.config.evaluation.masks_history:
            return np.zeros(0, np.int64), np.zeros(len(own), np.int64)
        parts = [torch.from_numpy(part) for part in (*targets, *rows.earlier.take(own))]
        unlisted = unlisted_rows(UserItems(*parts)).numpy()
        return unlisted[unlisted >= 0], (unlisted >= 0).sum(1)
