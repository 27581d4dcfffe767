"""Lists of the whole catalogue for every user of a split: metrics over all ranks, and ranks on disk.

Legend: B users of a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trec_semid.core.arrays import Array
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.dataset import RetrievalData
from trec_semid.data.retrieval.sequences import EvaluationRows
from trec_semid.data.schema import Split
from trec_semid.evaluation.list_metrics import (
    ListedInterests,
    ListMeans,
    category_values,
    distance_values,
    interest_values,
)
from trec_semid.evaluation.predictions import PredictionWriter
from trec_semid.evaluation.ranking import Named
from trec_semid.evaluation.retrieval import RetrievalAccumulator
from trec_semid.evaluation.shown_interests import SHOWN_INTERESTS
from trec_semid.evaluation.strata import Strata, StrataConfig, strata_of_counts
from trec_semid.evaluation.target_positions import TARGET_SCHEMA, distinct_targets
from trec_semid.metrics.effective_rank import effective_rank, gram_of
from trec_semid.metrics.retrieval import REACH
from trec_semid.metrics.target_positions import ListedTargets, UserItems
from trec_semid.models.retrieval_model import catalogue_facts
from trec_semid.runtime.logs import working
from trec_semid.runtime.ranks import Ranks
from trec_semid.runtime.runs import RunFolder
from trec_semid.search.reach import Missing, Shown, missing_of, reach_of
from trec_semid.search.retrieved import agreement
from trec_semid.tokenizers.inputs.shards import sum_over_ranks
from trec_semid.training.retrieval.evaluation.asked import (
    AskedModel,
    Judge,
    Lister,
    batches_of_ranks,
    scored_by,
)
from trec_semid.training.retrieval.evaluation.listing import PopularityLister
from trec_semid.training.retrieval.evaluation.merging import MergingLister
from trec_semid.training.retrieval.evaluation.shown_users import shown_users
from trec_semid.training.retrieval.setup import RetrieveConfig


class Lists(NamedTuple):
    """Some users of this rank."""

    rows: Array
    """(B,) positions among the users of the split."""
    places: ListedTargets
    """Of their targets, user after user."""


@dataclass(frozen=True)
class Evaluator:
    """Lists the catalogue for every user of a split, on all ranks together."""

    lister: Lister
    model: nn.Module | None
    """What the lister asks, put into evaluation mode; None where it asks none."""
    data: RetrievalData
    config: RetrieveConfig
    ranks: Ranks
    merging: MergingLister | None = None
    """Tells what lists are made of; None where items have no vectors, or several models score together."""
    asked: AskedModel | None = None
    """The one model that is asked; None where there is none, or several."""

    def metrics(self) -> dict[str, float]:
        """Return metrics of the validation split over all ranks, without strata, and what a model notes."""
        rows = self.rows("valid")
        accumulator = RetrievalAccumulator(None, self.data.num_items, cutoffs=self.config.evaluation.cutoffs)
        for lists in self.lists(rows):
            _take(accumulator, rows, lists)
        return accumulator.result()[0] | catalogue_facts(self.model)

    def write(
        self,
        folder: RunFolder,
        *,
        splits: tuple[Split, ...] = ("valid", "test"),
        strata: StrataConfig | None = None,
    ) -> Named:
        """Evaluate splits, write the positions of all targets, and return metrics and counts.

        Where lists are guessed, by a beam, an index or candidates, metrics say how much of the exact lists is
        in them.

        Args:
            folder: where positions are written.
            splits: whose users are asked for.
            strata: how targets are told apart; quarters of items and thirds of users where not given.
        """
        parts = strata_of_counts(self.data.item_counts, self.data.user_counts, strata)
        metrics: dict[str, float] = {}
        counts: dict[str, int] = {}
        for split in splits:
            rows = self.rows(split)
            values, sizes = self._write_split(folder, split, rows, parts)
            sizes["users_without_history"] = int((rows.histories.lengths == 0).sum())
            means, num_judged = self._list_metrics(rows)
            values |= means
            sizes |= {"list_users": num_judged} if means else {}
            if split == "valid":
                self._show_users(folder, rows)
            if self.config.evaluation.list_metrics.state_rank and self.asked is not None:
                values["state_rank"] = self._state_rank(self.asked, rows)
            metrics |= {f"{split}/{name}": value for name, value in values.items()}
            counts |= {f"{split}/{name}": value for name, value in sizes.items()}
        judged = agreement_with(self, judge) if (judge := self.lister.exact()) else None
        cutoffs = self.config.evaluation.cutoffs
        listed = {n: metrics[name] for n in cutoffs if (name := f"test/coverage@{n}") in metrics}
        shown = Shown(cutoffs, counts.get("test/users", 0), listed)
        reach = self._reach(folder, shown, [judged.missing] if judged else [])
        of_catalogue = catalogue_facts(self.model) | reach
        metrics |= {f"all/{name}": value for name, value in of_catalogue.items()}
        if self.config.evaluation.has_index:
            # What an index misses differs with them, so that numbers of other ranks need not be these.
            counts["all/index_stretches"] = self.ranks.world_size
        return (metrics | judged.shares if judged else metrics), counts

    def rows(self, split: Split) -> EvaluationRows:
        """Return the users of a split with what they did before, and each of their targets once."""
        return distinct_targets(self.data.sequences.evaluation_rows(split, self.config.sequences.max_len))

    @torch.no_grad()
    def lists(self, rows: EvaluationRows) -> Iterator[Lists]:
        """Yield lists of this rank's users, in as many batches on every rank; all ranks run it to the end.

        A user without a history tells a model nothing and gets the most popular items.
        """
        length = max(self.config.evaluation.cutoffs)
        popular = PopularityLister(self.data, self.ranks)
        if self.model is not None:
            self.model.eval()
        self.lister.begin()
        for chosen in self._batches(rows, self.lister.users_at_once):
            is_known = rows.histories.lengths[chosen] > 0
            for lister, own in ((self.lister, chosen[is_known]), (popular, chosen[~is_known])):
                places = lister.places(rows.histories, own, self._users(rows, own), length)
                if places is not None:
                    yield Lists(own, places)

    def _batches(self, rows: EvaluationRows, users_at_once: int) -> Iterator[Array]:
        """Yield (B,) rows of this rank's users, in as many batches on every rank."""
        batch_size = self.config.train.evaluation_batch_size
        return batches_of_ranks(len(rows.users), batch_size, users_at_once, self.ranks)

    @torch.no_grad()
    def _list_metrics(self, rows: EvaluationRows) -> tuple[dict[str, float], int]:
        """Return what is said of interests and lists, and of how many users; all ranks together."""
        asked, means = self.config.evaluation.list_metrics, ListMeans()
        first = _first_users(rows, asked.num_users)
        field = asked.category_field
        categories = torch.from_numpy(self.data.categories(field)).to(self.ranks.device) if field else None
        merging = self.merging
        if merging is None or not (asked.distance or self._has_several_interests):
            for lists in self.lists(first) if categories is not None else ():
                means.update(self._list_values(categories, lists.places.top_items), len(lists.rows))
            return means.result()
        if merging is not self.lister:
            merging.begin()
        for chosen in self._batches(first, merging.users_at_once):
            users, length = self._users(first, chosen), max(self.config.evaluation.cutoffs)
            listed, merged = merging.listed(first.histories, chosen, users, length)
            means.update(self._list_values(categories, merged.items, listed), len(chosen))
        return means.result()

    @torch.no_grad()
    def _show_users(self, folder: RunFolder, rows: EvaluationRows) -> None:
        """Write what a report shows of a few users' interests, after their metrics; all ranks together."""
        if self.merging is None or not self._has_several_interests:
            return
        users = shown_users(
            self.merging,
            rows,
            partial(self._users, rows),
            self.ranks,
            seed=self.config.seed,
            max_len=self.config.sequences.max_len,
        )
        if self.ranks.is_main:
            num_interests = self.config.retriever.num_interests
            content = {"split": "valid", "num_interests": num_interests, "users": users}
            folder.write_json(SHOWN_INTERESTS, content)

    @torch.no_grad()
    def _state_rank(self, asked: AskedModel, rows: EvaluationRows) -> float:
        """Return the effective rank of the states of the first so many users; all ranks together."""
        first = _first_users(rows, self.config.evaluation.list_metrics.num_users)
        grams: list[Tensor] = []
        for chosen in self._batches(first, self.config.train.evaluation_batch_size):
            states = asked.model.states_of_users(*asked.read(first.histories, chosen))
            grams.append(gram_of(states, sum_over_ranks))
        return effective_rank(torch.stack(grams).sum(0))

    @torch.no_grad()
    def _reach(self, folder: RunFolder, shown: Shown, missing: Sequence[Missing]) -> dict[str, float]:
        """Write how far lists reach, and return the shares of the catalogue that none can hold.

        Nothing of several models together; all ranks call it.
        """
        if self.asked is None:
            return {}
        evaluation, search = self.config.evaluation, self.asked.method.search(self.config.evaluation.search)
        share = self.config.loss.code_share
        scored = scored_by(self.asked, self.asked.catalogue(), evaluation, search, share)
        way = "index" if search == "exact" and evaluation.has_index else search
        facts = reach_of(scored, way, shown, self.data.item_ids, missing)
        if self.ranks.is_main:
            folder.write_json(REACH, facts.model_dump(mode="json"))
        return {f"hidden@{cutoff}": facts.hidden(cutoff) for cutoff in evaluation.cutoffs}

    @property
    def _has_several_interests(self) -> bool:
        return self.config.retriever.num_interests > 1

    def _list_values(
        self, categories: Tensor | None, items: Tensor, listed: ListedInterests | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield names and (B,) values of the lists (B, N) of some users."""
        cutoffs = self.config.evaluation.cutoffs
        if categories is not None:
            yield from category_values(categories, items, cutoffs)
        if listed is not None and self.config.evaluation.list_metrics.distance:
            yield from distance_values(listed.vectors, items, cutoffs)
        if listed is not None and self._has_several_interests:
            yield from interest_values(listed, cutoffs)

    def _users(self, rows: EvaluationRows, chosen: Array) -> UserItems:
        earlier = rows.earlier.take(chosen)
        if not self.config.evaluation.masks_history:
            earlier = np.zeros(0, np.int64), np.zeros_like(chosen)
        parts = (*rows.targets.take(chosen), *earlier)
        return UserItems(*(torch.from_numpy(part).to(self.ranks.device) for part in parts))

    def _write_split(self, folder: RunFolder, split: Split, rows: EvaluationRows, strata: Strata) -> Named:
        cutoffs, ranks = self.config.evaluation.cutoffs, self.ranks
        accumulator = RetrievalAccumulator(strata, self.data.num_items, cutoffs=cutoffs)
        firsts = np.cumsum(rows.targets.lengths) - rows.targets.lengths
        with (
            PredictionWriter(
                folder.uri,
                split,
                rank=ranks.rank,
                world_size=ranks.world_size,
                num_rows=int(rows.targets.lengths.sum()),
                schema=TARGET_SCHEMA,
            ) as writer,
            working(f"retrieve {split}", len(rows.users), shown=ranks.is_main) as work,
        ):
            for lists in self.lists(rows):
                _take(accumulator, rows, lists)
                items, lengths = rows.targets.take(lists.rows)
                within = np.arange(len(items)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                writer.write(
                    row=np.repeat(firsts[lists.rows], lengths) + within,
                    user_row=np.repeat(rows.users[lists.rows], lengths),
                    item_row=items,
                    rank=lists.places.positions.cpu().numpy(),
                )
                work.advance(len(lists.rows) * ranks.world_size)
        return accumulator.result()


def _take(accumulator: RetrievalAccumulator, rows: EvaluationRows, lists: Lists) -> None:
    targets, lengths = rows.targets.take(lists.rows)
    positions, shown = lists.places.positions.cpu().numpy(), lists.places.top_items.cpu().numpy()
    accumulator.update(rows.users[lists.rows], lengths, targets, positions, shown)


class Judged(NamedTuple):
    """What exact lists of some users say of those that are guessed."""

    shares: dict[str, float]
    """Of the exact first N items that stand in the first N that are guessed: a mean over users."""
    missing: Missing
    """Items that exact lists have and guessed ones lack."""


def agreement_with(guessing: Evaluator, judge: Judge) -> Judged:
    """Hold guessed lists against exact ones, over all ranks; all ranks call it.

    Users without a history are left out: no model is asked for them.

    Args:
        guessing: whose lists are judged.
        judge: lists every item with the same model, for the first so many users of the validation split.
    """
    split: Split = "test" if guessing.config.test_then_train else "valid"
    rows = _first_users(guessing.rows(split), judge.num_users)
    guessed, exact = _top_items(guessing, rows), _top_items(replace(guessing, lister=judge.lister), rows)
    shares: dict[str, float] = {}
    cutoffs = guessing.config.evaluation.cutoffs
    for cutoff in cutoffs:
        of_users = agreement(guessed[:, :cutoff], exact[:, :cutoff])
        sums = torch.stack([of_users.sum(), of_users.new_tensor(len(of_users))]).double()
        total, num_users = sum_over_ranks(sums.to(guessing.ranks.device)).tolist()
        shares[f"{split}/{judge.metric}@{cutoff}"] = total / max(num_users, 1.0)
    search = judge.metric.partition("_")[0]
    return Judged(shares, missing_of(search, guessed, exact, guessing.data.num_items, cutoffs))


def _first_users(rows: EvaluationRows, num_users: int) -> EvaluationRows:
    users, *parts = rows
    first = np.flatnonzero(rows.histories.lengths)[:num_users]
    return EvaluationRows(
        users[first], *(Ragged(part.starts[first], part.lengths[first], part.values) for part in parts)
    )


def _top_items(evaluator: Evaluator, rows: EvaluationRows) -> Tensor:
    """Return (n, length) items of this rank's users, in the order of the rows."""
    lists = list(evaluator.lists(rows))
    if not lists:
        return torch.zeros((0, max(evaluator.config.evaluation.cutoffs)), dtype=torch.int64)
    order = np.argsort(np.concatenate([part.rows for part in lists]))
    return torch.cat([part.places.top_items.cpu() for part in lists])[torch.from_numpy(order)]
