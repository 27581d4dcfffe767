import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.seeds import numpy_generator
from trec_semid.data.features import Feature, Sources
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.augment import AugmentConfig, draw_changes
from trec_semid.data.retrieval.batches import (
    ItemFeatures,
    SequenceMaker,
    Window,
    history_batch,
    sampled_by_popularity,
)
from trec_semid.data.retrieval.loader import SequenceLoader
from trec_semid.data.retrieval.soft_targets import SoftTargets

NUM_ITEMS = 11
FIELD = Ragged(np.arange(NUM_ITEMS) * 2, np.arange(NUM_ITEMS) % 3, np.arange(2 * NUM_ITEMS + 2) % 7)
FEATURES = (
    Feature("item_id", "item", "t_item_id", NUM_ITEMS),
    Feature("item_kind", "item_field", "t_item_kind", 7),
)
ITEM_FEATURES = ItemFeatures(FEATURES, Sources({"item_kind": FIELD}, None))


def test_items_without_ids_have_an_empty_bag_of_them_and_their_fields():
    has_id = np.arange(NUM_ITEMS) % 2 == 0
    rows = np.array([3, 4, 0, 9, 4])
    whole = ITEM_FEATURES.of(rows)
    gated = ItemFeatures(FEATURES, Sources({"item_kind": FIELD}, None, has_id=has_id)).of(rows)
    assert gated.lengths.tolist() == [0, 1, 1, 0, 1, *whole.lengths[5:].tolist()]
    assert gated.values.tolist() == [4, 0, 4, *whole.values[5:].tolist()]


def ragged(rows: list[list[int]]) -> Ragged:
    lengths = np.array([len(row) for row in rows], np.int64)
    values = np.array([item for row in rows for item in row], np.int64)
    return Ragged(np.cumsum(lengths) - lengths, lengths, values)


def predictions_of(batch) -> list[tuple[list[int], list[int]]]:
    """Read back (history, targets) of every place, in item rows."""
    items, places = batch.items.tolist(), batch.places
    found = []
    for place, targets in zip(places.predicting.tolist(), places.targets.tolist(), strict=True):
        row, at = divmod(place, places.inputs.shape[1])
        history = [items[i] for i in places.inputs[row, : at + 1].tolist()]
        found.append((history, [items[i] for i in targets if i >= 0]))
    return found


def predictions_by_hand(rows: list[list[int]], num_targets: int, *, last_only: bool):
    found = []
    for row in rows:
        for at in range(len(row) - 1):
            if not last_only or at == max(len(row) - 1 - num_targets, 0):
                found.append((row[: at + 1], row[at + 1 : at + 1 + num_targets]))
    return found


def all_items(rows: list[list[int]]) -> list[int]:
    return list(range(NUM_ITEMS))


def those_of(rows: list[list[int]]) -> list[int]:
    return sorted({item for row in rows for item in row})


ROWS = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), min_size=2, max_size=6), min_size=1, max_size=6)


@settings(deadline=None)
@given(ROWS, st.integers(1, 4), st.booleans(), st.sampled_from([None, all_items, those_of]))
def test_every_place_predicts_what_walking_the_rows_says(rows, num_targets, last_only, listed):
    maker = SequenceMaker(
        ragged(rows),
        ITEM_FEATURES,
        Window(num_targets, last_only),
        listed=listed and np.array(listed(rows)),
    )
    chosen = np.arange(len(rows))[::-1].copy()
    batch = maker.make(chosen, 1, numpy_generator(0))
    expected = predictions_by_hand([rows[i] for i in chosen], num_targets, last_only=last_only)
    assert predictions_of(batch) == expected
    assert maker.num_places(chosen) == len(expected)
    read = [len(row) - (min(num_targets, len(row) - 1) if last_only else 1) for row in rows]
    assert batch.places.lengths.tolist() == read[::-1]
    assert (batch.features is None) == (listed is not None)
    assert listed is None or batch.items.tolist() == listed(rows)


@settings(deadline=None)
@given(ROWS, st.integers(1, 3), st.integers(1, 7), st.booleans())
def test_of_items_before_the_last_ones_batches_bring_rows_and_no_features(
    rows, num_targets, last, all_listed
):
    listed, read_alone = np.arange(NUM_ITEMS) if all_listed else None, [(row, []) for row in rows]
    window, chosen = Window(num_targets, True), np.arange(len(rows))
    maker = SequenceMaker(ragged(rows), ITEM_FEATURES, window, num_in_full=last, listed=listed)
    histories = history_batch(ragged(rows), chosen, ITEM_FEATURES, len(rows), num_in_full=last)
    expected = predictions_by_hand(rows, num_targets, last_only=True)
    for batch, wanted in ((maker.make(chosen, 1, numpy_generator(0)), expected), (histories, read_alone)):
        in_full = [(read[-last:], ahead) for read, ahead in wanted]
        assert predictions_of(batch) == in_full
        coded = batch.places.coded
        assert coded is not None
        for user, (read, _) in enumerate(wanted):
            assert coded.rows[coded.inputs[user, : coded.lengths[user]]].tolist() == read
        assert coded.rows.tolist() == sorted({item for read, _ in wanted for item in read})
        assert sorted(torch.cat([part for part, _ in coded.by_length()]).tolist()) == chosen.tolist()
        if batch.features is not None:
            assert batch.items.tolist() == sorted({i for read, ahead in in_full for i in [*read, *ahead]})


@settings(deadline=None)
@given(ROWS)
def test_listed_items_carry_their_own_features(rows):
    maker = SequenceMaker(ragged(rows), ITEM_FEATURES, Window(1, False))
    batch = maker.make(np.arange(len(rows)), 1, numpy_generator(0))
    items = batch.items.tolist()
    assert items == sorted({item for row in rows for item in row})
    assert batch.features is not None
    of_field = [FIELD.values[2 * item : 2 * item + item % 3].tolist() for item in items]
    assert batch.features.values.tolist() == items + [value for values in of_field for value in values]
    assert batch.features.lengths.tolist() == [1] * len(items) + [len(values) for values in of_field]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=5), min_size=1, max_size=6))
def test_a_history_predicts_from_its_last_item_and_an_empty_one_not_at_all(rows):
    batch = history_batch(ragged(rows), np.arange(len(rows)), ITEM_FEATURES, len(rows))
    assert [history for history, _ in predictions_of(batch)] == [row for row in rows if row]


def test_sampled_items_come_as_often_as_log_q_says():
    counts = np.array([0, 1, 3, 15, 80])
    sampled = sampled_by_popularity(counts, 20_000, 0.5)
    drawn = np.bincount(sampled.draw(numpy_generator(3)), minlength=5)
    expected = np.sqrt(counts + 1) / np.sqrt(counts + 1).sum() * 20_000
    assert drawn == pytest.approx(expected, rel=0.1)
    assert np.exp(sampled.log_q(np.arange(5))) == pytest.approx(expected, rel=1e-5)


def test_items_never_seen_are_not_drawn_where_they_are_not_to_be():
    counts = np.array([0, 2, 0, 5, 0])
    sampled = sampled_by_popularity(counts, 5_000, 0.75, draws_unseen=False)
    drawn = np.bincount(sampled.draw(numpy_generator(3)), minlength=5)
    shares = np.array([0, 3**0.75, 0, 6**0.75, 0])
    assert drawn == pytest.approx(shares / shares.sum() * 5_000, rel=0.1)


def test_sampled_items_are_listed_beside_those_named():
    maker = SequenceMaker(
        ragged([[1, 2, 3], [4, 5]]),
        ITEM_FEATURES,
        Window(1, False),
        sampled=sampled_by_popularity(np.ones(NUM_ITEMS), 8, 1.0),
    )
    batch = maker.make(np.arange(2), 3, numpy_generator(1))
    drawn = batch.items[batch.places.sampled].tolist()
    assert len(drawn) == 8
    assert set(batch.items.tolist()) == {1, 2, 3, 4, 5} | set(drawn)
    assert len(batch.places.log_q) == len(batch.items)


def loader_of(rows: list[list[int]], rank: int = 0, world_size: int = 1) -> SequenceLoader:
    maker = SequenceMaker(ragged(rows), ITEM_FEATURES, Window(1, False))
    return SequenceLoader(maker, batch_size=4, seed=5, rank=rank, world_size=world_size)


def drawn_rows(num_rows: int = 37) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(0, NUM_ITEMS, random.integers(2, 7)).tolist() for _ in range(num_rows)]


def test_an_epoch_has_every_row_once_and_another_epoch_another_order():
    loader = loader_of(drawn_rows())
    first, second = (np.concatenate(loader.rows_of_batches(epoch)) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(37))
    assert first.tolist() != second.tolist()
    assert len(loader.rows_of_batches(0)) == loader.steps_per_epoch == 10


def test_parts_of_ranks_make_up_the_batches_of_one_rank():
    rows = drawn_rows()
    whole = [sorted(batch.rows.tolist()) for batch in loader_of(rows).batches()]
    parts = [list(loader_of(rows, rank, 2).batches()) for rank in range(2)]
    together = [sorted(a.rows.tolist() + b.rows.tolist()) for a, b in zip(*parts, strict=True)]
    assert together == whole
    for a, b in zip(*parts, strict=True):
        assert len(a.places.predicting) + len(b.places.predicting) == a.global_size == b.global_size


def test_a_loader_goes_on_where_its_state_says():
    loader = loader_of(drawn_rows())
    batches = loader.batches()
    for _ in range(3):
        next(batches)
    state = loader.state_dict()
    rest = [batch.rows.tolist() for batch in batches]
    other = loader_of(drawn_rows())
    other.load_state_dict(state)
    assert [batch.rows.tolist() for batch in other.batches()] == rest
    assert other.state_dict() == {"epoch": 1, "step": 0}


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=30))
def test_rows_are_read_with_those_of_about_their_length(lengths):
    rows = ragged([[0] * length for length in lengths])
    places = history_batch(rows, np.arange(len(lengths)), ITEM_FEATURES, len(lengths)).places
    assert sorted(places.order.tolist()) == list(range(len(lengths)))
    for rows, longest in places.by_length():
        found = [lengths[row] for row in rows]
        assert max([1, *found]) == longest
        assert all(2 * max(length, 1) > longest for length in found)
    assert 1 <= len(places.stretches) <= 7  # 0 and 1, 2, 3 and 4, to 8, to 16, to 32, to 64


AUGMENT = AugmentConfig(crop_prob=0.6, crop_share=0.5, shuffle_prob=0.7, shuffle_share=0.6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.integers(1, 3))
def test_a_place_of_a_varied_row_has_read_what_came_before_its_targets_and_nothing_else(
    seed: int, last_only: bool, num_targets: int
):
    rng = np.random.default_rng(seed)
    rows = [list(range(100 * row, 100 * row + int(rng.integers(2, 9)))) for row in range(6)]
    window = Window(num_targets, last_only, augment=AUGMENT)
    features = ItemFeatures((), Sources({}, None))
    maker = SequenceMaker(ragged(rows), features, window)
    chosen = np.arange(6)
    changes = maker.draw_changes(chosen, rng)
    assert changes is not None
    batch = maker.make(chosen, 0, rng, changes)
    found = predictions_of(batch)
    assert len(found) == maker.num_places(chosen, changes) >= 6
    ended = set()
    for history, targets in found:
        row, (first, stay) = (
            targets[0] // 100,
            (int(changes.first[targets[0] // 100]), int(changes.lengths[targets[0] // 100])),
        )
        stays = rows[row][first : first + stay]
        at = stays.index(targets[0])
        assert sorted(history) == stays[:at]  # in whatever order, all that came before and no more
        assert targets == stays[at : at + num_targets]
        ended.add(row)
    assert ended == set(range(6))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([None, AUGMENT]),
    st.sampled_from(["all", "drawn", "named"]),
)
def test_a_place_has_the_list_of_the_event_that_it_reads_last(
    seed: int, last_only: bool, num_targets: int, augment: AugmentConfig | None, lists: str
):
    """Items of rows are their own events here, so a place's target says which event was read before it."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 9, 6)
    rows = [list(range(end - size, end)) for size, end in zip(sizes, np.cumsum(sizes), strict=True)]
    num_events = int(sizes.sum())
    items = rng.integers(-1, num_events, (num_events, 4)).astype(np.int32)
    shares = np.where(items < 0, 0, rng.random(items.shape)).astype(np.float16)
    sampled = sampled_by_popularity(np.ones(num_events), 3, 1.0) if lists == "drawn" else None
    maker = SequenceMaker(
        ragged(rows),
        ItemFeatures((), Sources({}, None)),
        Window(num_targets, last_only, None, augment, SoftTargets(np.arange(num_events), items, shares)),
        listed=np.arange(num_events) if lists == "all" else None,
        sampled=sampled,
    )
    chosen = rng.permutation(6)[:4]
    places = (batch := maker.make(chosen, 0, rng, maker.draw_changes(chosen, rng))).places
    listed = batch.items.numpy()
    assert places.soft_targets is not None
    assert places.soft_shares is not None
    found = np.where(places.soft_targets < 0, -1, listed[places.soft_targets.clamp(min=0)])
    read = listed[places.targets[:, 0]] - 1
    assert found.tolist() == items[read].tolist()
    total = shares[read].astype(np.float64).sum(1, keepdims=True)
    wanted = np.divide(shares[read], total, out=np.zeros(found.shape), where=total > 0)
    assert places.soft_shares.numpy() == pytest.approx(wanted, abs=1e-6)


def test_rows_that_are_varied_are_those_of_one_rank_on_two_and_of_a_run_that_goes_on():
    rows = [list(range(row % 5, row % 5 + 3 + row % 5)) for row in range(23)]
    maker = SequenceMaker(ragged(rows), ITEM_FEATURES, Window(1, is_last_only=False, augment=AUGMENT))

    def batches(rank: int = 0, world_size: int = 1, epoch: int = 1, step: int = 0):
        loader = SequenceLoader(maker, batch_size=8, seed=3, rank=rank, world_size=world_size)
        loader.load_state_dict({"epoch": epoch, "step": step})
        return [
            (batch.rows.tolist(), sorted(predictions_of(batch)), batch.global_size)
            for batch in loader.batches()
        ]

    alone, parts = batches(), [batches(rank, 2) for rank in range(2)]
    for (own, found, size), *others in zip(alone, *parts, strict=True):
        assert sorted(own) == sorted(row for part, _, _ in others for row in part)
        assert found == sorted(place for _, places, _ in others for place in places)
        assert {size} == {each for _, _, each in others} == {len(found)}
    assert batches(step=2) == alone[2:]
    assert [found for _, found, _ in batches(epoch=2)] != [found for _, found, _ in alone]
    plain = SequenceMaker(ragged(rows), ITEM_FEATURES, Window(1, is_last_only=False))
    varied = sum(len(history) for _, found, _ in alone for history, _ in found)
    assert varied < sum(len(row) * (len(row) - 1) // 2 for row in rows)
    assert plain.draw_changes(np.arange(5), np.random.default_rng(0)) is None


def test_shares_of_rows_are_cropped_and_shuffled_as_often_and_as_far_as_is_said():
    lengths = np.full(20_000, 20)
    changes = draw_changes(AUGMENT, lengths, 1, np.random.default_rng(0))
    cropped, shuffled = changes.lengths < 20, changes.size > 0
    assert cropped.mean() == pytest.approx(0.6, abs=0.02)
    assert shuffled.mean() == pytest.approx(0.7, abs=0.02)
    assert set(changes.lengths[cropped]) == {10}
    assert set(changes.size[shuffled & ~cropped]) == {11}  # of the 19 that are read
    assert set(changes.first[cropped]) == set(range(11))
    ends = changes.start + changes.size
    assert (ends <= changes.lengths - 1).all()
    assert set(ends[shuffled & ~cropped]) == set(range(11, 20))
