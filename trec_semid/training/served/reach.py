"""How far the lists of what is exported reach into the catalogue.

Legend: B users, n length of the lists, N items.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from trec_semid.core.arrays import Array, Ints
from trec_semid.metrics.retrieval import ReachFacts, best_places, shares_listed
from trec_semid.metrics.target_positions import TopItems
from trec_semid.search.ann import IndexSearch
from trec_semid.search.reach import Missing, Scored, Shown, missing_of, reach_of
from trec_semid.training.retrieval.evaluation.asked import NUM_JUDGED, penalties_of, scored_by
from trec_semid.training.served.retriever import ServedRetriever, TestUsers


def reach_of_bundle(
    served: ServedRetriever,
    users: TestUsers,
    listed: Array,
    names: Callable[[Ints], Sequence[str]],
    index: tuple[IndexSearch, TopItems] | None = None,
) -> ReachFacts | None:
    """Return what a bundle's lists show and lack; None of popularity, which lists alike for everyone.

    What a beam or candidates miss is known where the model can score all items, of the first users; of an
    index too.

    Args:
        served: the models.
        users: whose lists were made.
        listed: (B, n) item rows that the bundle lists; -1 after the last.
        names: gives the ids of item rows.
        index: that the bundle has besides, and its lists of the same users.
    """
    if not served.members:
        return None
    num_items, length = served.data.num_items, listed.shape[1]
    cutoffs = [cutoff for cutoff in served.config.evaluation.cutoffs if cutoff <= length]
    shown = Shown(cutoffs, len(listed), shares_listed(best_places(listed, num_items), cutoffs))
    missing = [*_missed(served, users, listed, cutoffs), *_of_index(listed, cutoffs, num_items, index)]
    return reach_of(_scored(served), served.listed_by, shown, names, missing)


def _scored(served: ServedRetriever) -> Scored:
    evaluation, way = served.config.evaluation, served.listed_by
    each = [
        scored_by(
            member.asked,
            member.catalogue,
            evaluation if served.config.learns else member.config.evaluation,
            way,
            member.config.loss.code_share,
        )
        for member in served.members
    ]
    if served.config.learns:
        return each[0]
    penalties = penalties_of(served.data, evaluation.unseen_penalty, served.ranks)
    return Scored(tuple(part.catalogues[0] for part in each), penalties)


def _missed(
    served: ServedRetriever, users: TestUsers, listed: Array, cutoffs: Sequence[int]
) -> Iterator[Missing]:
    """Yield what a beam or candidates miss, where that can be known."""
    can_score = all(member.asked.model.scores_catalogue for member in served.members)
    if served.listed_by in ("beam", "two_stage") and can_score:
        exact = served.lists(users, listed.shape[1], way="exact", most_users=NUM_JUDGED).items
        guessed = torch.from_numpy(np.ascontiguousarray(listed[: len(exact)]))
        yield missing_of(served.listed_by, guessed, exact, served.data.num_items, cutoffs)


def _of_index(
    exact: Array, cutoffs: Sequence[int], num_items: int, index: tuple[IndexSearch, TopItems] | None
) -> Iterator[Missing]:
    """Yield what an index cannot reach, and what it misses."""
    if index is None:
        return
    search, lists = index
    cut_off = np.ones(num_items, bool)
    cut_off[search.reachable()] = False
    yield Missing("no_path", "index", dict.fromkeys(cutoffs, cut_off))
    yield missing_of("index", lists.items, torch.from_numpy(exact), num_items, cutoffs)
