"""What lists are asked of: a model on its ranks, what lists by it, and what says how good its lists are.

Legend: B users of a batch, N items.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, final

import numpy as np
import torch
from torch import Tensor

from trec_semid.core.arrays import Array
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.batches import history_batch
from trec_semid.data.retrieval.dataset import RetrievalData
from trec_semid.data.retrieval.places import Places
from trec_semid.metrics.target_positions import ListedTargets, UserItems
from trec_semid.models.item_tokens import Tokens
from trec_semid.models.live_codes import LiveCodes
from trec_semid.models.queries import Queries
from trec_semid.models.retrieval_model import RetrievalModel
from trec_semid.models.retriever import Retriever, SearchKind
from trec_semid.runtime.ranks import Ranks, leave_if_asked
from trec_semid.search.catalogue import Catalogue, build_catalogue
from trec_semid.search.code_prior import CodePrior
from trec_semid.search.reach import Scored
from trec_semid.training.retrieval.evaluation_config import EvaluationConfig
from trec_semid.training.retrieval.item_feed import ItemFeed

NUM_JUDGED = 1_000
"""Users whose guessed lists are held against the exact ones."""


class Lister(Protocol):
    """Lists the catalogue for users of a split."""

    users_at_once: int
    """Users of a batch, at most."""

    def begin(self) -> None:
        """Take the model as it is now; all ranks together."""
        ...

    def places(self, histories: Ragged, chosen: Array, users: UserItems, length: int) -> ListedTargets | None:
        """Return where targets stand, in lists of so many items; all ranks together, None without users.

        Args:
            histories: of all users of the split.
            chosen: (B,) rows of these.
            users: their targets, and items that are not listed.
            length: of the lists.
        """
        ...

    def exact(self) -> "Judge | None":
        """Return what says how good the lists are that this one guesses; None where nothing is guessed."""
        ...


class Judge(NamedTuple):
    """Lists of the same model that are exact."""

    lister: Lister
    num_users: int
    """That it can be asked for in reasonable time."""
    metric: str = "beam_agreement"
    """What the share of its lists that the other one finds is called."""


@final
@dataclass(frozen=True)
class AskedModel:
    """A model on its ranks, with what brings it items and histories."""

    method: Retriever[Any]
    model: RetrievalModel
    feed: ItemFeed
    data: RetrievalData
    ranks: Ranks

    def read(self, histories: Ragged, chosen: Array) -> tuple[Tokens, Places]:
        """Return the items of the chosen (B,) histories, and these over them; all ranks together."""
        batch = history_batch(
            histories,
            chosen,
            self.data.item_features,
            len(chosen),
            num_in_full=self.method.num_in_full,
        ).to(self.ranks.device)
        return self.model.items(self.feed.listed(batch)), batch.places

    @property
    def code_map(self) -> LiveCodes:
        """The item -> code map and its tables, of a model that predicts codes."""
        live = self.model.items.live
        assert live is not None, "a config that asks codes of items without is refused"
        return live

    def queries(self, histories: Ragged, chosen: Array) -> Queries:
        """Return what items are scored with, of the chosen (B,) users; all ranks together."""
        return self.model.queries(*self.read(histories, chosen))

    def catalogue(self) -> Catalogue:
        """Return what items are scored by now, on several ranks a stretch on each; all ranks together."""
        return build_catalogue(self.model, self.feed.chunk, self.data.num_items, self.ranks)


def batches_of_ranks(num_users: int, batch_size: int, users_at_once: int, ranks: Ranks) -> Iterator[Array]:
    """Yield (B,) of this rank's share of so many users, in as many batches on every rank.

    Args:
        num_users: of all ranks.
        batch_size: users of a global batch.
        users_at_once: of a rank's batch, at most.
        ranks: all of them go round together, and stop where they are asked to.
    """
    world = ranks.world_size
    size = world * min(-(-batch_size // world), users_at_once)
    # Over global batches, of which a rank takes every world-th user: all ranks go round equally often.
    for start in range(0, num_users, size):
        leave_if_asked()
        yield np.arange(start, min(start + size, num_users))[ranks.rank :: world]


def penalties_of(data: RetrievalData, unseen_penalty: float, ranks: Ranks) -> Tensor | None:
    """Return (N,) what is taken off items' scores: the penalty where there is no training event, or nothing.

    None where that is nothing for all.
    """
    if not unseen_penalty:
        return None
    return unseen_penalty * torch.from_numpy(data.item_counts == 0).float().to(ranks.device)


def code_prior_of(asked: AskedModel, evaluation: EvaluationConfig) -> CodePrior | None:
    """Return by which codes said apart are weighed, as a config has it that names its defaults; or None."""
    config = evaluation.code_prior
    if config is None or config.kind == "none" or not asked.model.has_independent_codes:
        return None
    return CodePrior(torch.from_numpy(asked.data.item_counts).to(asked.ranks.device), config.item_share)


def scored_by(
    asked: AskedModel, catalogue: Catalogue, evaluation: EvaluationConfig, search: SearchKind, share: float
) -> Scored:
    """Return what tells a model's items apart when it lists one way.

    Args:
        asked: the model.
        catalogue: of it.
        evaluation: its settings.
        search: how lists are made.
        share: of codes in the score of an item (`loss.code_share`).
    """
    if search in ("beam", "graph"):
        catalogue = catalogue._replace(vectors=None)
    elif search == "exact" and catalogue.vectors is not None and not share:
        catalogue = catalogue._replace(codes=None)
    penalties = penalties_of(asked.data, evaluation.unseen_penalty, asked.ranks)
    prior = code_prior_of(asked, evaluation) if catalogue.codes is not None else None
    if prior is not None:
        penalties = _less(penalties, prior, asked, share if search == "two_stage" else 1.0)
    is_varied = evaluation.interests_of(asked.method).merge == "diversity"
    return Scored(
        (catalogue,),
        penalties,
        None if catalogue.codes is None else asked.code_map.sizes,
        max(evaluation.cutoffs) if is_varied else 0,
    )


def _less(penalties: Tensor | None, prior: CodePrior, asked: AskedModel, share: float) -> Tensor:
    gains = share * prior.of_items(asked.code_map.codes)
    return -gains if penalties is None else penalties - gains
