import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.datasets import describe_again, write_small_dataset
from trec_semid.core.errors import DataError
from trec_semid.data.histories import Events, HistoryConfig, index_histories, read_events
from trec_semid.data.schema import Dataset

ROWS = st.lists(
    st.tuples(
        st.integers(0, 3),  # user
        st.integers(0, 9),  # item
        st.integers(0, 1),  # label
        st.integers(0, 5),  # time: ties are common
        st.integers(0, 2),  # split
        st.booleans(),  # sampled negative
    ),
    min_size=1,
    max_size=40,
)


def events_of(rows) -> Events:
    rows = sorted(rows, key=lambda row: row[3])
    users, items, labels, when, splits, negative = (np.array(column) for column in zip(*rows, strict=True))
    return Events(
        users.astype(np.int64),
        items.astype(np.int64),
        labels.astype(np.float32),
        when.astype(np.int64) * 1000 - 7,
        splits.astype(np.int8),
        negative.astype(bool),
    )


def brute_force(events: Events, row: int, config: HistoryConfig, frozen: bool) -> list[int]:
    history = []
    for other in range(len(events.users)):
        if events.users[other] != events.users[row] or events.when[other] >= events.when[row]:
            continue
        if events.is_negative[other] or (frozen and events.splits[other] != 0):
            continue
        if config.events == "positives" and events.labels[other] != 1:
            continue
        history.append(int(events.items[other]))
    return history[-config.max_len :] if config.max_len else []


@given(ROWS, st.integers(1, 5), st.sampled_from(["positives", "all"]), st.sampled_from(["online", "frozen"]))
def test_histories_equal_brute_force_also_with_equal_timestamps(rows, max_len, kinds, protocol):
    events, config = events_of(rows), HistoryConfig(max_len=max_len, events=kinds)
    index = index_histories(events, config)[protocol]
    found = index.before(events.users, events.when, max_len)
    for row in range(len(events.users)):
        ids = found.take(np.array([row]))[0].tolist()
        assert ids == brute_force(events, row, config, protocol == "frozen")


def test_a_time_between_known_ones_and_an_unknown_user_work():
    events = events_of([(0, 1, 1, 1, 0, False), (0, 2, 1, 3, 0, False)])
    index = index_histories(events, HistoryConfig())["online"]
    found = index.before(np.array([0, 0, 5]), np.array([1500, 10**12, 1500]), 10)
    assert [found.take(np.array([row]))[0].tolist() for row in range(3)] == [[1], [1, 2], []]


def test_no_eligible_event_gives_empty_histories():
    events = events_of([(0, 1, 0, 1, 0, False), (0, 2, 0, 3, 0, False)])
    found = index_histories(events, HistoryConfig())["frozen"].before(events.users, events.when, 5)
    assert found.lengths.tolist() == [0, 0]


def test_frozen_histories_hold_training_events_only_and_online_ones_more(tmp_path):
    events = read_events(Dataset(write_small_dataset(str(tmp_path / "d"))))
    indexes = index_histories(events, HistoryConfig(max_len=1000))
    test = events.splits == 2
    sizes = {
        name: index.before(events.users[test], events.when[test], 1000).lengths.sum()
        for name, index in indexes.items()
    }
    assert len(indexes["frozen"].items) == ((events.splits == 0) & (events.labels == 1)).sum()
    assert sizes["frozen"] < sizes["online"]


def test_without_timestamps_order_is_the_clock(tmp_path):
    events = read_events(Dataset(write_small_dataset(str(tmp_path / "d"), with_time=False)))
    assert events.when.tolist() == list(range(len(events.when)))


def change_events(folder, change) -> None:
    path = f"{folder}/events/part-00000.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    describe_again(folder)


def test_a_missing_timestamp_is_refused_by_row(tmp_path):
    folder = write_small_dataset(str(tmp_path / "d"))
    times = pq.read_table(f"{folder}/events/part-00000.parquet")["timestamp"].to_pylist()
    times[7] = None
    change_events(
        folder, lambda table: table.set_column(3, table.schema.field(3), pa.array(times, pa.int64()))
    )
    with pytest.raises(DataError, match="row 8, field 'timestamp': missing timestamp"):
        read_events(Dataset(folder))


def test_events_out_of_order_are_refused_by_row(tmp_path):
    folder = write_small_dataset(str(tmp_path / "d"))
    change_events(folder, lambda table: table.take([1, 0, *range(2, table.num_rows)]))
    with pytest.raises(DataError, match="row 2, field 'order': events out of order"):
        read_events(Dataset(folder))
