"""Candidates that codes propose and vectors order, against plain Python, exact search and other ranks."""

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.catalogues import (
    Catalogue as Planted,
)
from tests.catalogues import autoregressive, owned_by_hand, prefix_log_probs, searched_by_hand
from tests.ranks import run_ranks
from trec_semid.metrics.target_positions import UNLISTED, UserItems
from trec_semid.models.heads.beams import parallel_heads
from trec_semid.models.queries import Queries, TwoStageQueries
from trec_semid.runtime.ranks import Ranks, process_group
from trec_semid.search.catalogue import Catalogue, stretch_of
from trec_semid.search.code_prior import CodePrior
from trec_semid.search.exact import ExactSearch
from trec_semid.search.two_stage import TwoStageSearch

ITEMS, LENGTH, USERS, SIZES = 23, 6, 9, (2, 3)
PENALTIES = (torch.arange(ITEMS) % 5 == 0).float()
COUNTS = torch.arange(ITEMS) ** 2 % 17


class Case(NamedTuple):
    seed: int
    candidates: int
    width: int | None = None
    share: float = 1.0
    interests: int = 1
    num_users: int = USERS
    is_chained: bool = False
    item_share: float | None = None
    """Of the prior of codes; None for none."""


CASES = [
    *(Case(seed, candidates) for seed in range(3) for candidates in (1, 7, 40)),
    *(Case(seed, 7, width, share=share) for seed in (3, 4) for width in (3, 40) for share in (0.0, 0.5)),
    *(Case(5, 9, width, interests=3) for width in (None, 40)),
    *(Case(seed, 8, width, is_chained=True) for seed in (6, 7) for width in (4, 40)),
    *(Case(8, 7, width, num_users=num_users) for width in (None, 4) for num_users in (0, 2)),
    *(Case(seed, 7, width, item_share=2.0) for seed in (9, 10) for width in (None, 3, 40)),
]


class User(NamedTuple):
    states: np.ndarray
    interest_log_probs: np.ndarray
    log_probs: np.ndarray
    targets: np.ndarray
    masked: np.ndarray


def problem(case: Case) -> tuple[np.ndarray, Planted, list[User]]:
    """Draw small whole numbers, so that scores are exact and ties are many."""
    rng = np.random.default_rng(case.seed)
    vectors = rng.integers(-2, 3, (ITEMS, 2)).astype(np.float32)
    planted = Planted(np.stack([rng.integers(0, size + 1, ITEMS) for size in SIZES], 1), SIZES)
    users = [
        User(
            rng.integers(-2, 3, (case.interests, 2)).astype(np.float32),
            -rng.integers(0, 3, case.interests).astype(np.float32),
            -rng.integers(0, 3, (2, 4)).astype(np.float32),
            rng.choice(ITEMS, rng.integers(1, 4), replace=False),
            rng.choice(ITEMS, rng.integers(0, 5), replace=False),
        )
        for _ in range(USERS)
    ]
    return vectors, planted, users


def queries_of(case: Case, numbers: list[int], users: list[User]) -> TwoStageQueries:
    def stacked(parts: list[np.ndarray], *shape: int) -> torch.Tensor:
        return torch.from_numpy(np.array(parts, np.float32).reshape(len(users), *shape))

    states = stacked([user.states for user in users], case.interests, 2)
    log_p = stacked([user.interest_log_probs for user in users], case.interests)
    of_items = Queries(states, None, log_p) if case.interests > 1 else Queries(states[:, 0], None)
    if case.is_chained:

        def ask(position: int, beams: Any) -> torch.Tensor:
            every = autoregressive(SIZES)
            padded = beams._replace(codes=beams.codes.new_zeros(USERS, *beams.codes.shape[1:]))
            padded.codes[numbers] = beams.codes
            return every(position, padded)[numbers]

        return TwoStageQueries(of_items, ask, None, case.share)
    log_probs = stacked([user.log_probs for user in users], 2, 4)
    asked = parallel_heads([log_probs[:, 0, :3], log_probs[:, 1]])
    return TwoStageQueries(of_items, asked, log_probs, case.share)


def items_of(users: list[User]) -> UserItems:
    parts = []
    for name in ("targets", "masked"):
        each = [getattr(user, name) for user in users]
        parts += [
            np.concatenate([np.zeros(0, np.int64), *each]),
            np.array([len(part) for part in each], np.int64),
        ]
    return UserItems(*(torch.from_numpy(part) for part in parts))


def answers(case: Case, ranks: Ranks) -> Any:
    """Return positions and lists of this rank's users, every so-manieth."""
    vectors, planted, users = problem(case)
    rows = stretch_of(ranks.rank, ranks.world_size, ITEMS)
    shared = ranks.world_size > 1
    catalogue = Catalogue(ITEMS, rows.start, torch.from_numpy(vectors)[rows], None, None, is_shared=shared)
    codes = torch.from_numpy(planted.codes)
    prior = None if case.item_share is None else CodePrior(COUNTS, case.item_share)
    search = TwoStageSearch(
        catalogue,
        codes,
        SIZES,
        num_candidates=case.candidates,
        beam_width=case.width,
        penalties=PENALTIES,
        prior=prior,
    )
    numbers = list(range(case.num_users))[ranks.rank :: ranks.world_size]
    own = [users[number] for number in numbers]
    places = search.places(queries_of(case, numbers, own), items_of(own), LENGTH)
    return places.positions.tolist(), places.top_items.tolist()


def gain_by_hand(
    case: Case, planted: Planted, prefix: tuple[int, ...] | None, item: int | None = None
) -> float:
    """Return what naive Bayes adds to a code after its prefix, or to an item after its tuple."""
    if case.item_share is None:
        return 0.0
    counts = (COUNTS + 1).tolist()

    def counted(start: int, codes: tuple[int, ...]) -> int:
        own = [
            count
            for own, count in zip(planted.tuples, counts, strict=True)
            if own[start:][: len(codes)] == codes
        ]
        return sum(own)

    if item is not None:
        return case.item_share * math.log(counts[item] / counted(0, planted.tuples[item]))
    assert prefix is not None, "of one or the other"
    of_code, of_prefix = counted(len(prefix) - 1, prefix[-1:]), counted(0, prefix)
    if not of_prefix:  # no item: no beam goes there
        return 0.0
    share = case.item_share * math.log(of_prefix / counted(0, prefix[:-1]))
    return share - math.log(of_code / sum(counts))


def by_hand(case: Case) -> list[tuple[list[int], list[int]]]:
    """Return positions of targets, and the list, of each user."""
    vectors, planted, users = problem(case)
    told = []
    for number, user in enumerate(users[: case.num_users]):
        left_out = tuple(set(user.masked.tolist()) - set(user.targets.tolist()))

        def step(own: int, prefix: tuple[int, ...], num_codes: int) -> list[float]:
            if case.is_chained:
                return prefix_log_probs(own, prefix, num_codes)
            said = users[own].log_probs[len(prefix)].tolist()
            return [each + gain_by_hand(case, planted, (*prefix, code)) for code, each in enumerate(said)]

        beams = searched_by_hand(planted, number, case.width or ITEMS, step, left_out)
        owned = owned_by_hand(planted, beams, left_out)
        if case.item_share is not None:
            owned = [(round(score + gain_by_hand(case, planted, None, of), 4), of) for score, of in owned]
        off = PENALTIES.tolist() if case.width is None else [0.0] * ITEMS  # sums of codes know penalties
        owned.sort(key=lambda pair: (off[pair[1]] - pair[0], pair[1]))
        proposed = owned[: case.candidates]
        scored = []
        for by_codes, item in proposed:
            products = user.states @ vectors[item]
            best = (products + user.interest_log_probs).max() if case.interests > 1 else products.max()
            told_of = user.log_probs[range(len(SIZES)), planted.codes[item]].sum()
            # What is gained decides which items are proposed, and nothing else.
            log_p = by_codes if case.is_chained else float(told_of)
            scored.append((float(best) + case.share * log_p - float(PENALTIES[item]), item))
        order = [item for _, item in sorted(scored, key=lambda pair: (-pair[0], pair[1]))]
        positions = [order.index(item) + 1 if item in order else UNLISTED for item in user.targets]
        told.append((positions, (order + [-1] * LENGTH)[:LENGTH]))
    return told


def test_one_rank_proposes_and_orders_as_by_hand():
    for case in CASES:
        expected = by_hand(case)
        positions, lists = answers(case, Ranks(0, 1, 0, torch.device("cpu")))
        assert lists == [listed for _, listed in expected], case
        assert positions == [position for own, _ in expected for position in own], case


def test_items_of_a_high_penalty_are_not_proposed_by_sums_of_codes():
    case = Case(12, 4)
    vectors, planted, users = problem(case)
    codes = torch.from_numpy(planted.codes)
    catalogue = Catalogue(ITEMS, 0, torch.from_numpy(vectors), None, None)
    unseen = torch.arange(ITEMS) < ITEMS - 6
    search = TwoStageSearch(
        catalogue, codes, SIZES, num_candidates=4, beam_width=None, penalties=1000 * unseen.float()
    )
    queries, items = queries_of(case, list(range(USERS)), users), items_of(users)
    proposed = search.propose(
        queries, items._replace(masked=items.masked[:0], num_masked=0 * items.num_masked)
    )
    assert bool((proposed.items >= ITEMS - 6).all())
    assert queries.code_log_probs is not None
    of_codes = [queries.code_log_probs[:, r].gather(1, codes[proposed.items, r]) for r in range(2)]
    assert torch.equal(proposed.code_scores, of_codes[0] + of_codes[1])


def answers_of_rank() -> tuple[int, list[Any]]:
    with process_group() as ranks:
        return ranks.rank, [answers(case, ranks) for case in CASES]


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_with_a_stretch_of_vectors_each_do_so_too(world_size: int):
    told = dict(run_ranks(answers_of_rank, world_size))
    for number, case in enumerate(CASES):
        expected = by_hand(case)
        for rank in range(world_size):
            positions, lists = told[rank][number]
            own = expected[rank::world_size]
            assert lists == [listed for _, listed in own], case
            assert positions == [position for each, _ in own for position in each], case


@pytest.mark.parametrize("width", [None, ITEMS])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_with_all_items_as_candidates_lists_are_those_of_exact_search(width: int | None, share: float):
    case = Case(11, ITEMS, width, share=share)
    vectors, planted, users = problem(case)
    codes = torch.from_numpy(planted.codes)
    catalogue = Catalogue(ITEMS, 0, torch.from_numpy(vectors), codes, None)
    queries = queries_of(case, list(range(USERS)), users)
    by_codes = share * queries.code_log_probs if share else None
    exact = ExactSearch([catalogue], PENALTIES).places(
        [Queries(queries.of_items.vectors, by_codes)], items_of(users), LENGTH
    )
    positions, lists = answers(case, Ranks(0, 1, 0, torch.device("cpu")))
    assert lists == exact.top_items.tolist()
    assert positions == exact.positions.tolist()
