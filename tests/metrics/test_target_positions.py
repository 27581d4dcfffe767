import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.errors import DataError, ShapeError
from trec_semid.metrics import target_positions
from trec_semid.metrics.target_positions import (
    CHUNK_SCORES,
    UNLISTED,
    UserItems,
    list_top_items,
    locate_targets,
    positions_in_lists,
)


def user_items(targets, masked=None):
    masked = [[] for _ in targets] if masked is None else masked
    columns = (
        column
        for lists in (targets, masked)
        for column in (
            torch.tensor([item for items in lists for item in items], dtype=torch.int64),
            torch.tensor([len(items) for items in lists], dtype=torch.int64),
        )
    )
    return UserItems(*columns)


def scorer(scores):
    return lambda chunk: torch.tensor(scores[:, chunk])


def listed(scores, targets, masked):
    """Sort every user's whole list."""
    return [
        sorted(
            (row for row, score in enumerate(own) if (row not in out or row in wanted) and score > -math.inf),
            key=lambda row, own=own: (-own[row], row),
        )
        for own, wanted, out in zip(scores.tolist(), targets, masked, strict=True)
    ]


@st.composite
def batches(draw):
    num_users, num_items = draw(st.integers(1, 4)), draw(st.integers(1, 200))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["tied", "all equal", "distinct", "ascending", "odd"]))
    if kind == "odd":
        scores = random.choice(
            np.array([-np.inf, np.inf, 0.0, -0.0, 1e-45, -1e-45, 1.0, np.nextafter(np.float32(1), 2)], "f4"),
            (num_users, num_items),
        )
    else:
        scores = random.standard_normal((num_users, num_items)).astype(np.float32)
        scores = np.sort(scores) if kind == "ascending" else scores
        scores = np.round(scores * {"tied": 2, "all equal": 0}.get(kind, 1e6))
    lists = st.lists(st.integers(0, num_items - 1), max_size=8)
    targets = [draw(lists.map(lambda rows: list(dict.fromkeys(rows)))) for _ in range(num_users)]
    masked = [draw(lists) + draw(st.sampled_from([[], targets[user]])) for user in range(num_users)]
    return scores.astype(np.float32), targets, masked


@settings(deadline=None, max_examples=80)
@given(
    batches(),
    st.sampled_from([1, 3, 8, None]),
    st.sampled_from([0, 100, 1 << 26]),
    st.sampled_from([1, 3, 20, 250]),
)
def test_positions_and_lists_are_those_of_the_sorted_list(batch, num_chunks, stored_scores, list_length):
    scores, targets, masked = batch
    chunk_items = num_chunks and -(-scores.shape[1] // num_chunks)
    found = locate_targets(
        scorer(scores),
        user_items(targets, masked),
        scores.shape[1],
        list_length=list_length,
        chunk_items=chunk_items,
        stored_scores=stored_scores,
    )
    check(found, batch, list_length)


@settings(deadline=None)
@given(batches(), st.sampled_from([1, 3, 20, 250]), st.booleans())
def test_lists_alone_are_those_of_the_sorted_list(batch, list_length, is_large):
    scores, targets, masked = batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target_positions, "_FEW", 0 if is_large else 1 << 16)
        top = list_top_items(
            scorer(scores), user_items(targets, masked), scores.shape[1], list_length=list_length
        )
    for items, best, own, expected in zip(
        top.items.tolist(), top.scores.tolist(), scores, listed(scores, targets, masked), strict=True
    ):
        short = list_length - len(expected[:list_length])
        assert items == expected[:list_length] + [-1] * short
        assert best == own[expected[:list_length]].tolist() + [-math.inf] * short


@pytest.mark.parametrize("stored_scores", [0, 70, 1000])
def test_chunks_may_be_single_items(stored_scores):
    random = np.random.default_rng(5)
    scores = random.integers(0, 6, (3, 40)).astype(np.float32)
    batch = scores, [[3, 39, 0], [20], []], [[3, 4], [], [7, 7]]
    users = user_items(*batch[1:])
    found = locate_targets(
        scorer(scores), users, 40, list_length=20, chunk_items=1, stored_scores=stored_scores
    )
    check(found, batch, 20)


def check(found, batch, list_length):
    scores, targets, masked = batch
    lists = listed(scores, targets, masked)
    wanted = [
        own.index(target) + 1 if target in own else UNLISTED
        for own, rows in zip(lists, targets, strict=True)
        for target in rows
    ]
    assert found.positions.tolist() == wanted
    for shown, own in zip(found.top_items.tolist(), lists, strict=True):
        assert shown == own[:list_length] + [-1] * (list_length - len(own[:list_length]))


def test_lists_of_a_larger_catalogue_are_those_of_the_sorted_list():
    random = np.random.default_rng(0)
    scores = (random.standard_normal((5, 30_000)) * 300).round().astype(np.float32)
    targets = [random.choice(30_000, 4, replace=False).tolist() for _ in range(5)]
    masked = [random.choice(30_000, 200).tolist() for _ in range(5)]
    lists = listed(scores, targets, masked)
    for chunk_items in (7_000, None):
        found = locate_targets(
            scorer(scores), user_items(targets, masked), 30_000, chunk_items=chunk_items, stored_scores=50_000
        )
        assert found.top_items.tolist() == [own[:100] for own in lists]
        wanted = [own.index(t) + 1 for own, rows in zip(lists, targets, strict=True) for t in rows]
        assert found.positions.tolist() == wanted


@settings(deadline=None)
@given(batches())
def test_positions_in_given_lists_are_those_of_the_catalogue_as_far_as_the_lists_go(batch):
    scores, targets, masked = batch
    users = user_items(targets, masked)
    found = locate_targets(scorer(scores), users, scores.shape[1], list_length=10)
    in_lists = positions_in_lists(found.top_items, users.targets, users.num_targets)
    assert torch.equal(in_lists, torch.where(found.positions <= 10, found.positions, UNLISTED))


def test_history_is_taken_out_but_never_a_target():
    scores = np.array([[5.0, 4.0, 3.0, 2.0]], np.float32)
    found = locate_targets(scorer(scores), user_items([[2]], [[0, 2, 0]]), 4, list_length=3)
    assert found.positions.tolist() == [2]
    assert found.top_items.tolist() == [[1, 2, 3]]


def test_other_targets_of_a_user_are_items_of_the_list():
    scores = np.array([[5.0, 4.0, 3.0, 2.0]], np.float32)
    assert locate_targets(scorer(scores), user_items([[3, 0, 1]]), 4).positions.tolist() == [4, 1, 2]


def test_a_batch_without_users_or_targets_has_no_positions():
    found = locate_targets(scorer(np.zeros((0, 9), np.float32)), user_items([]), 9)
    assert found.positions.shape == (0,)
    assert found.top_items.shape == (0, 100)
    assert locate_targets(scorer(np.zeros((2, 9), np.float32)), user_items([[], []]), 9).positions.shape == (
        0,
    )


def test_every_item_is_scored_once_where_scores_are_kept_and_never_more_than_twice():
    asked = []

    def score(chunk):
        asked.append(chunk.start)
        return torch.zeros(2, chunk.stop - chunk.start)

    locate_targets(score, user_items([[1], [2]]), 100, chunk_items=10)
    assert asked == list(range(0, 100, 10))
    asked.clear()
    locate_targets(score, user_items([[1], [2]]), 100, chunk_items=10, stored_scores=80)
    assert asked == [*range(0, 100, 10), *range(40, 100, 10)]


def test_chunks_stay_small_however_many_users_and_items():
    widths = []

    def score(chunk):
        widths.append(chunk.stop - chunk.start)
        return torch.zeros(num_users, widths[-1])

    for num_users, num_items in ((1, 3_000_000), (500, 9_000)):
        widths.clear()
        targets = [[num_items - 1]] * num_users
        found = locate_targets(score, user_items(targets), num_items, list_length=10)
        assert sum(widths) == num_items
        assert max(widths) * num_users <= CHUNK_SCORES
        assert set(found.positions.tolist()) == {num_items}
        assert found.top_items[-1].tolist() == list(range(10))


def test_half_precision_and_gradients_are_taken():
    scores = torch.randn(3, 50, requires_grad=True)
    found = locate_targets(lambda chunk: (scores * 2)[:, chunk].bfloat16(), user_items([[1], [2], [3]]), 50)
    rounded = (scores * 2).bfloat16().float().detach().numpy()
    assert found.top_items[:, :50].tolist() == listed(rounded, [[]] * 3, [[]] * 3)


def test_scores_that_are_no_numbers_are_refused():
    scores = np.zeros((3, 70), np.float32)
    scores[1, 69] = np.nan
    with pytest.raises(DataError, match=r"row 2, field 'score': score is NaN"):
        locate_targets(scorer(scores), user_items([[1], [2], [3]]), 70)


def test_a_scorer_that_changes_its_mind_is_refused():
    torch.manual_seed(0)
    with pytest.raises(DataError, match="two scores"):
        locate_targets(
            lambda chunk: torch.randn(1, chunk.stop - chunk.start), user_items([[1]]), 9, stored_scores=0
        )


@pytest.mark.parametrize(
    ("targets", "masked", "error", "told"),
    [
        ([[9]], [[]], DataError, r"row 1, field 'targets': no such item \(got 9\)"),
        ([[1]], [[2, -1]], DataError, r"row 2, field 'masked': no such item \(got -1\)"),
        ([[1, 2, 1]], [[]], DataError, r"user has a target twice \(got 1\)"),
        ([[1]], [[], []], ShapeError, "1 users with targets, but 2 with masks"),
        ([[1], [2]], [[], []], ShapeError, "scores: wrong shape"),
    ],
)
def test_batches_that_do_not_fit_are_refused(targets, masked, error, told):
    with pytest.raises(error, match=told):
        locate_targets(scorer(np.zeros((1, 9), np.float32)), user_items(targets, masked), 9)


def test_lengths_must_add_up():
    users = user_items([[1], [2]])._replace(num_masked=torch.tensor([0, 3]))
    with pytest.raises(ShapeError, match="masked: 0 items, but lengths sum up to 3"):
        locate_targets(scorer(np.zeros((2, 9), np.float32)), users, 9)
