import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.retrieval_runs import NUM_ITEMS, NUM_USERS, RANDOM_STRATA, random_targets
from tests.ranks import run_ranks
from trec_semid.core.errors import DataError, ShapeError
from trec_semid.evaluation.retrieval import RetrievalAccumulator, retrieval_metrics
from trec_semid.evaluation.strata import ACTIVITY, POPULARITY, STRATA, Strata, strata_of_counts
from trec_semid.evaluation.target_positions import TargetPositions
from trec_semid.metrics.target_positions import UserItems, locate_targets
from trec_semid.runtime.ranks import process_group

CUTOFFS = (5, 10, 50, 100)


def whole_batch(seed=0, most=5):
    """Users, lengths, targets, ranks and lists of all users."""
    targets = random_targets(seed=seed, most=most)
    users, lengths = np.unique(targets.user_row, return_counts=True)
    random = np.random.default_rng(seed + 1)
    top = np.stack([random.permutation(NUM_ITEMS // 2)[:100] for _ in users])
    top[3, 40:] = -1
    return users, lengths, targets.item_row, targets.position, top


def part_of(batch, chosen):
    users, lengths, items, ranks, top = batch
    mine = np.isin(np.repeat(np.arange(len(users)), lengths), chosen)
    return users[chosen], lengths[chosen], items[mine], ranks[mine], top[chosen]


def measured(batch, parts, strata=RANDOM_STRATA):
    accumulator = RetrievalAccumulator(strata, NUM_ITEMS)
    for chosen in parts:
        accumulator.update(*part_of(batch, chosen))
    return accumulator.result()


def walked(batch, strata):
    """Every metric and count by walking each user's targets."""
    users, lengths, items, ranks, top = batch
    owner = np.repeat(np.arange(len(users)), lengths)
    groups = {"": np.ones(len(items), bool)}
    groups |= {f"/{name}": strata.items[items] == at for at, name in enumerate(POPULARITY)}
    groups |= {f"/{name}": strata.users[users][owner] == at for at, name in enumerate(ACTIVITY)}
    metrics, counts = {}, {}
    for suffix, group in groups.items():
        of_users = [ranks[group & (owner == user)].tolist() for user in range(len(users))]
        of_users = [own for own in of_users if own]
        counts |= {f"users{suffix}": len(of_users), f"targets{suffix}": sum(map(len, of_users))}
        for cutoff in CUTOFFS if of_users else ():
            recalls = [sum(rank <= cutoff for rank in own) / len(own) for own in of_users]
            ndcgs = [
                sum(1 / math.log2(rank + 1) for rank in own if rank <= cutoff)
                / sum(1 / math.log2(place + 1) for place in range(1, min(cutoff, len(own)) + 1))
                for own in of_users
            ]
            metrics[f"recall@{cutoff}{suffix}"] = sum(recalls) / len(recalls)
            metrics[f"ndcg@{cutoff}{suffix}"] = sum(ndcgs) / len(ndcgs)
    for cutoff in CUTOFFS:
        shown = {item for own in top.tolist() for item in own[:cutoff] if item >= 0}
        metrics[f"coverage@{cutoff}"] = len(shown) / NUM_ITEMS
        for at, name in enumerate(POPULARITY):
            part = set(np.flatnonzero(strata.items == at).tolist())
            if part:
                metrics[f"coverage@{cutoff}/{name}"] = len(shown & part) / len(part)
    return metrics, counts


@pytest.mark.parametrize("most", [1, 5])
def test_metrics_are_those_of_walking_every_user(most):
    batch = whole_batch(most=most)
    metrics, counts = measured(batch, [np.arange(NUM_USERS)])
    wanted_metrics, wanted_counts = walked(batch, RANDOM_STRATA)
    assert metrics == pytest.approx(wanted_metrics, abs=1e-14)
    assert metrics.keys() == wanted_metrics.keys()
    assert counts == wanted_counts


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.integers(1, 40))
def test_order_and_size_of_batches_do_not_change_a_bit(seed, num_parts):
    batch = whole_batch()
    parts = np.array_split(np.random.default_rng(seed).permutation(NUM_USERS), num_parts)
    assert measured(batch, map(np.sort, parts)) == measured(batch, [np.arange(NUM_USERS)])


def measure_on_ranks():
    """Users dealt out in turn, and all of them on the last rank."""
    with process_group() as ranks:
        everyone, is_last = np.arange(NUM_USERS), ranks.rank == ranks.world_size - 1
        dealt = np.array_split(everyone[ranks.rank :: ranks.world_size], 3)
        return measured(whole_batch(), dealt), measured(whole_batch(), [everyone] if is_last else [])


@pytest.mark.ranks
def test_two_ranks_give_what_one_gives_to_the_bit():
    alone = measured(whole_batch(), [np.arange(NUM_USERS)])
    assert run_ranks(measure_on_ranks, 2) == [(alone, alone)] * 2


def test_metrics_of_ranks_from_files_are_the_same_but_for_coverage():
    batch = whole_batch()
    targets = random_targets()
    metrics, counts = measured(batch, [np.arange(NUM_USERS)])
    without = {name: value for name, value in metrics.items() if not name.startswith("coverage")}
    assert retrieval_metrics(targets, RANDOM_STRATA) == (without, counts)
    plain, plain_counts = retrieval_metrics(targets)
    assert plain == {name: value for name, value in without.items() if "/" not in name}
    assert plain_counts == {"users": NUM_USERS, "targets": len(targets.row)}


def test_cold_items_and_unseen_users_have_strata_of_their_own():
    strata = strata_of_counts(np.array([9, 5, 3, 1, 0]), np.array([3, 2, 1, 0]))
    accumulator = RetrievalAccumulator(strata, 5, cutoffs=(2,))
    # User 0 wants a cold item and finds it, and the head, which is not found; user 3 the tail, found.
    accumulator.update([0, 3], [2, 1], [4, 0, 3], [1, 3, 2], [[4, 1], [1, 3]])
    metrics, counts = accumulator.result()
    assert metrics["recall@2"] == (1 / 2 + 1) / 2
    assert metrics["recall@2/popularity_unseen"] == metrics["ndcg@2/popularity_unseen"] == 1
    assert metrics["recall@2/popularity_head"] == 0
    assert metrics["recall@2/popularity_tail"] == 1
    assert metrics["ndcg@2/popularity_tail"] == pytest.approx(1 / math.log2(3))
    assert metrics["recall@2/user_unseen"] == 1
    assert metrics["coverage@2"] == 3 / 5
    assert metrics["coverage@2/popularity_unseen"] == 1
    assert metrics["coverage@2/popularity_head"] == 0
    assert "recall@2/popularity_middle" not in metrics
    assert "recall@2/activity_low" not in metrics
    assert counts["users/popularity_unseen"] == 1
    assert counts["targets/popularity_middle"] == 0
    assert {name.partition("/")[2] for name in counts} == {"", *STRATA}


def test_users_without_targets_count_for_coverage_alone():
    accumulator = RetrievalAccumulator(None, 4, cutoffs=(2,))
    accumulator.update([0, 1], [1, 0], [3], [2], [[1, 3], [0, -1]])
    metrics, counts = accumulator.result()
    assert metrics == {"recall@2": 1, "ndcg@2": 1 / math.log2(3), "coverage@2": 3 / 4}
    assert counts == {"users": 1, "targets": 1}


def test_nothing_is_said_of_no_users():
    assert RetrievalAccumulator(None, 4).result() == ({}, {"users": 0, "targets": 0})


def test_the_whole_way_from_scores_is_sorting_the_whole_list_of_every_user():
    """Leave-one-out on scores with many ties: ranks, strata and lists by numpy's lexsort."""
    random = np.random.default_rng(3)
    scores = random.integers(0, 20, (NUM_USERS, NUM_ITEMS)).astype(np.float32)
    targets = random.integers(0, NUM_ITEMS, NUM_USERS)
    history = [random.integers(0, NUM_ITEMS, size) for size in random.integers(0, 20, NUM_USERS)]
    accumulator = RetrievalAccumulator(RANDOM_STRATA, NUM_ITEMS)
    for users in np.array_split(np.arange(NUM_USERS), 7):
        lengths = torch.ones(len(users), dtype=torch.int64)
        masked = [history[user] for user in users]
        batch = UserItems(
            torch.tensor(targets[users]),
            lengths,
            torch.tensor(np.concatenate(masked)),
            torch.tensor([len(own) for own in masked]),
        )
        found = locate_targets(
            lambda chunk, users=users: torch.tensor(scores[users, chunk]), batch, NUM_ITEMS, chunk_items=70
        )
        accumulator.update(users, lengths, targets[users], found.positions, found.top_items)
    ranks, top = [], []
    for user in range(NUM_USERS):
        out = np.isin(np.arange(NUM_ITEMS), history[user]) & (np.arange(NUM_ITEMS) != targets[user])
        order = np.lexsort((np.arange(NUM_ITEMS), -scores[user]))
        order = order[~out[order]]
        ranks.append(1 + int(np.flatnonzero(order == targets[user])[0]))
        top.append(order[:100])
    lengths = np.ones(NUM_USERS, np.int64)
    batch = np.arange(NUM_USERS), lengths, targets, np.array(ranks), np.stack(top)
    metrics, counts = accumulator.result()
    wanted_metrics, wanted_counts = walked(batch, RANDOM_STRATA)
    assert metrics == pytest.approx(wanted_metrics, abs=1e-14)
    assert counts == wanted_counts


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"lengths": [1]}, ShapeError, "lengths: wrong shape"),
        ({"positions": [1, 2]}, ShapeError, "positions: wrong shape"),
        ({"target_rows": [1, 2]}, ShapeError, "target_rows: wrong shape"),
        (
            {"top_items": [[1], [2]]},
            ShapeError,
            r"top_items: wrong shape \(got \(2, 1\), expected \(2, 2\)\)",
        ),
        ({"positions": [1, 2, 0]}, DataError, r"row 3, field 'rank': no such rank \(got 0\)"),
        ({"top_items": [[1, 4], [2, 3]]}, DataError, r"top_items': no such item \(got 4\)"),
        ({"target_rows": [1, 2, 7]}, DataError, r"item_row': no such row \(got 7\)"),
        ({"user_rows": [0, 5]}, DataError, r"user_row': no such row \(got 5\)"),
    ],
)
def test_updates_that_do_not_fit_are_refused(changes, error, told):
    strata = Strata(np.zeros(4, np.int8), np.zeros(3, np.int8))
    columns = {
        "user_rows": [0, 1],
        "lengths": [1, 2],
        "target_rows": [1, 2, 3],
        "positions": [1, 2, 3],
        "top_items": [[1, 2], [2, 3]],
    }
    with pytest.raises(error, match=told):
        RetrievalAccumulator(strata, 4, cutoffs=(2,)).update(**(columns | changes))


def test_targets_of_a_file_that_the_strata_do_not_know_are_refused():
    strata = Strata(np.zeros(4, np.int8), np.zeros(3, np.int8))
    with pytest.raises(DataError, match="no such row"):
        retrieval_metrics(TargetPositions(*np.array([[0], [0], [9], [1]])), strata)
