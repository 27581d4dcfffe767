import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.errors import DataError
from trec_semid.data.features import Sources
from trec_semid.data.histories import Events
from trec_semid.data.retrieval.batches import ItemFeatures, SequenceMaker, Window
from trec_semid.data.retrieval.sequences import SequencesConfig, build_sequences
from trec_semid.data.schema import SPLITS

NUM_USERS = 6
DRAWN = st.tuples(st.integers(0, 2**31 - 1), st.integers(1, 5), st.integers(1, 4))


def drawn(seed: int) -> Events:
    """Return interleaved events whose split rises along each user's sequence."""
    random = np.random.default_rng(seed)
    num_events = int(random.integers(1, 60))
    users = random.integers(0, NUM_USERS, num_events)
    splits = np.empty(num_events, np.int8)
    for user in range(NUM_USERS):
        mine = users == user
        splits[mine] = np.sort(random.integers(0, 3, mine.sum()))
    labels = random.integers(0, 2, num_events).astype(np.float32)
    negative = random.random(num_events) < 0.2
    items = random.integers(0, 99, num_events)
    return Events(users, items, labels, np.arange(num_events), splits, negative)


def slow(events: Events, config: SequencesConfig) -> list[list[list[int]]]:
    """Return items by user and split."""
    found = [[[] for _ in SPLITS] for _ in range(NUM_USERS)]
    for user, item, label, split, negative in zip(
        events.users, events.items, events.labels, events.splits, events.is_negative, strict=True
    ):
        if not negative and (config.events == "all" or label > 0.5):
            found[user][split].append(int(item))
    return found


def chained(parts: list[list[int]]) -> list[int]:
    return [item for part in parts for item in part]


def lists(ragged) -> list[list[int]]:
    pairs = zip(ragged.starts, ragged.lengths, strict=True)
    return [ragged.values[start : start + length].tolist() for start, length in pairs]


@settings(deadline=None)
@given(DRAWN, st.sampled_from(["all", "positives"]))
def test_rows_equal_walking_every_user(drawn_from, events_kind):
    seed, max_len, window = drawn_from
    events = drawn(seed)
    config = SequencesConfig(max_len=max_len, events=events_kind)
    expected = slow(events, config)
    if not any(chained(parts) for parts in expected):
        with pytest.raises(DataError, match=r"no events .*to make sequences of") as error:
            build_sequences(events, config, NUM_USERS)
        assert ("sequences.events = 'all'" in str(error.value)) == (events_kind == "positives")
        return
    made = build_sequences(events, config, NUM_USERS)
    dense = [
        parts[0][max(0, end - max_len) : end + 1]
        for parts in expected
        for end in range(len(parts[0]) - 1, 0, -max_len)
    ]
    assert lists(made.training_rows(config)) == dense
    assert sum(len(row) - 1 for row in dense) == sum(max(len(parts[0]) - 1, 0) for parts in expected)
    last = [parts[0][-max_len - 1 :] for parts in expected if len(parts[0]) > 1]
    assert lists(made.training_rows(config.model_copy(update={"rows": "last"}))) == last
    sliding, targets = [], []
    for parts in expected:
        # Targets from the last training item backwards, W at a time, never the first item.
        for end in range(len(parts[0]), 1, -window):
            first = max(end - window, 1)
            sliding.append(parts[0][max(0, first - max_len) : end])
            targets += parts[0][first:end]
    assert lists(made.training_rows(config.model_copy(update={"rows": "sliding"}), window)) == sliding
    assert sorted(targets) == sorted(item for parts in expected for item in parts[0][1:])
    for part, split in enumerate(SPLITS):
        rows = made.evaluation_rows(split, max_len)
        users = [user for user in range(NUM_USERS) if expected[user][part]]
        assert rows.users.tolist() == users
        assert lists(rows.targets) == [expected[user][part] for user in users]
        before = [chained(expected[user][:part])[-max_len:] for user in users]
        assert lists(rows.histories) == before


def test_splits_that_do_not_rise_are_refused():
    two = np.zeros(2, np.int64)
    events = Events(two, two, np.ones(2, np.float32), np.arange(2), np.array([1, 0], np.int8), two > 0)
    with pytest.raises(DataError, match=r"earlier split comes after"):
        build_sequences(events, SequencesConfig(), 1)


@given(
    st.lists(st.lists(st.integers(0, 2), max_size=9), min_size=1, max_size=4),
    st.integers(1, 4),
    st.sampled_from(["dense", "last", "sliding"]),
    st.integers(1, 3),
)
def test_every_test_item_with_one_before_it_is_a_target_once_and_no_other_is(parts, max_len, rows, window):
    of_users = [sorted(each) for each in parts]
    users = np.repeat(np.arange(len(parts)), [len(each) for each in parts])
    if not len(users):
        return
    items = np.arange(len(users))
    splits = np.array([split for each in of_users for split in each], np.int8)
    none = np.zeros(len(users))
    events = Events(users, items, none, items, splits, none.astype(bool))
    config = SequencesConfig(max_len=max_len, rows=rows)
    windows, taught = build_sequences(events, config, len(parts)).rows_of_test(config, window)
    ahead = window if rows == "sliding" else 1
    maker = SequenceMaker(
        windows, ItemFeatures((), Sources({}, None)), Window(ahead, rows == "sliding", taught)
    )
    seen: list[int] = []
    for row in range(len(windows.lengths)):
        batch = maker.make(np.array([row]), 1, np.random.default_rng(0))
        own, (history,) = batch.items.numpy(), batch.places.inputs.numpy()
        for place, targets in zip(batch.places.predicting.numpy(), batch.places.targets.numpy(), strict=True):
            named = own[targets[targets >= 0]].tolist()
            last = int(own[history[place]])
            assert named == list(range(last + 1, last + 1 + len(named)))
            assert place < max_len
            seen += named
        assert maker.num_places(np.array([row])) == len(batch.places.predicting)
    firsts = set((np.cumsum([len(each) for each in parts]) - [len(each) for each in parts]).tolist())
    expected = [item for item in items.tolist() if splits[item] == 2 and item not in firsts]
    if rows == "last":
        assert set(seen) <= set(expected)
    else:
        assert sorted(seen) == expected
