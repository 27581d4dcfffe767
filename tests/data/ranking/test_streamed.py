"""Streamed rows beside those in memory: the same rows, each once, whatever the files, windows and ranks."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets import describe_again, write_small_dataset
from trec_semid.core.errors import DataError
from trec_semid.data.batches import RankingBatch
from trec_semid.data.features import FeaturesConfig
from trec_semid.data.histories import HistoryConfig, read_events
from trec_semid.data.ranking.batch_maker import BatchMaker, DistinctItems
from trec_semid.data.ranking.dataset import RankingData
from trec_semid.data.ranking.row_files import RowsConfig, write_rows
from trec_semid.data.ranking.source import Asked, Codes, RankingSource
from trec_semid.data.ranking.streamed import StreamConfig, StreamedData
from trec_semid.data.schema import Dataset, RowFacts

PROTOCOLS = ("frozen", "online")
SPLITS = {"train": 1701, "valid": 189, "test": 210}


def with_rows(folder: str, **rows: object) -> Dataset:
    dataset = Dataset(write_small_dataset(folder))
    config = RowsConfig.model_validate({"history": {"max_len": 6}} | rows)
    counts = {"num_users": dataset.facts.num_users, "num_items": dataset.facts.num_items}
    write_rows(folder, read_events(dataset), config, **counts, seed=0, file=folder)
    describe_again(folder, rows=config.facts())
    return Dataset(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("rows") / "d")
    return with_rows(folder, rows_per_group=100, rows_per_file=450)


def in_memory(dataset, max_len=6) -> RankingData:
    return RankingData(*read_with(dataset, max_len))


def streamed(dataset, max_len=6, window=3) -> StreamedData:
    return StreamedData(*read_with(dataset, max_len), stream=StreamConfig(window=window))


def read_with(dataset, max_len):
    rng = np.random.default_rng(0)
    codes = Codes(rng.integers(0, [5, 7], size=(dataset.facts.num_items, 2)).astype(np.int32), (4, 6))
    return dataset, FeaturesConfig(id_min_events=40), HistoryConfig(max_len=max_len), "both", codes


def expect_rows(batches: Iterable[RankingBatch], maker: BatchMaker) -> list[int]:
    """Expect of batches what rows in memory say of the same rows; return which rows these are, in order."""
    came: list[int] = []
    for batch in batches:
        own = batch.rows[batch.rows >= 0].numpy()
        expect_same(batch, maker.make(own, batch.global_size, len(batch.rows) - len(own)))
        came += own.tolist()
    assert len(set(came)) == len(came), "a row came twice"
    return came


def expect_same(one: RankingBatch, other: RankingBatch) -> None:
    assert one.features.keys == other.features.keys
    assert (one.items is None) == (other.items is None)
    assert one.global_size == other.global_size
    pairs = [(one.features.values, other.features.values), (one.features.lengths, other.features.lengths)]
    pairs += [(getattr(one, name), getattr(other, name)) for name in ("labels", "weights", "rows")]
    pairs += [*zip(one.of, other.of, strict=True), *zip(one.items or (), other.items or (), strict=True)]
    for pair in pairs:
        np.testing.assert_array_equal(*map(np.asarray, pair))


@pytest.fixture(scope="module")
def makers(dataset):
    """What makes batches of rows in memory, by split and protocol."""
    data = in_memory(dataset)
    asked = [("train", "frozen"), *((split, each) for split in ("valid", "test") for each in PROTOCOLS)]
    return {key: data.maker_of(data.rows(*key)) for key in asked}


@settings(max_examples=12)
@given(st.integers(1, 5), st.integers(90, 700), st.integers(1, 30), st.integers(0, 3))
def test_an_epoch_has_every_row_once_in_as_many_steps_on_every_rank(
    dataset, makers, world_size, batch_size, window, epoch
):
    data = streamed(dataset, window=window)
    ranks = [data.training(Asked(batch_size, rank, world_size), seed=1) for rank in range(world_size)]
    for rank in ranks:
        rank.load_state_dict({"epoch": epoch, "step": 0})
    # As many as in memory, or one more where rows of ranks and of their parts of a batch divide otherwise.
    assert len({rank.steps_per_epoch for rank in ranks}) == 1
    assert 0 <= ranks[0].steps_per_epoch - -(-1701 // batch_size) <= 1
    steps = list(zip(*(list(rank.batches()) for rank in ranks), strict=True))
    assert len(steps) == ranks[0].steps_per_epoch
    for parts in steps:
        assert len({len(part.labels) for part in parts}) == 1
        assert {part.global_size for part in parts} == {sum(len(part.of.users) for part in parts)}
        assert all(int(part.weights.sum()) == len(part.of.users) for part in parts)
        assert 0 < parts[0].global_size <= batch_size
    came = expect_rows((part for parts in steps for part in parts), makers["train", "frozen"])
    assert sorted(came) == list(range(1701))
    assert {rank.epoch for rank in ranks} == {epoch + 1}


@settings(max_examples=12)
@given(st.integers(1, 3), st.integers(1, 30), st.data())
def test_going_on_from_any_step_yields_what_had_come(dataset, world_size, window, draw):
    rank = draw.draw(st.integers(0, world_size - 1))
    asked = Asked(130, rank, world_size)
    whole = streamed(dataset, window=window).training(asked, seed=1)
    batches = [batch for _ in range(2) for batch in whole.batches()]
    at = draw.draw(st.integers(0, whole.steps_per_epoch))
    resumed = streamed(dataset, window=window).training(asked, seed=1)
    resumed.load_state_dict({"epoch": 0, "step": at})
    rest = [batch for _ in range(2) for batch in resumed.batches()]
    for one, other in zip(rest, batches[at:], strict=True):
        expect_same(one, other)


@pytest.mark.parametrize("items", [None, DistinctItems(3)])
def test_where_one_window_holds_all_rows_batches_are_those_of_rows_in_memory(dataset, items):
    asked = Asked(400, distinct_items=items)
    sources: list[RankingSource] = [in_memory(dataset), streamed(dataset, window=100)]
    ours, theirs = (source.training(asked, seed=4) for source in sources)
    for _ in range(2):
        for one, other in zip(ours.batches(), theirs.batches(), strict=True):
            expect_same(one, other)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_has_every_row_once_under_either_protocol(dataset, makers, split, world_size):
    data = streamed(dataset)
    for protocol in PROTOCOLS:
        ranks = [list(data.evaluation(split, protocol, Asked(64, r, world_size))) for r in range(world_size)]
        assert len({len(batches) for batches in ranks}) == 1
        came = expect_rows((batch for rank in ranks for batch in rank), makers[split, protocol])
        assert sorted(came) == list(range(SPLITS[split]))


@pytest.mark.parametrize("max_len", [4, 1, 0])
def test_histories_may_be_shorter_than_those_of_the_files(dataset, max_len):
    data = in_memory(dataset, max_len)
    batches = streamed(dataset, max_len).evaluation("test", "online", Asked(1000))
    assert len(expect_rows(batches, data.maker_of(data.rows("test", "online")))) == 210


def test_counts_are_those_of_events_in_memory(dataset):
    ours, theirs = streamed(dataset), in_memory(dataset)
    for name in ("train_counts", "label_counts"):
        asked = ("valid",) if name == "label_counts" else ()
        for one, other in zip(getattr(ours, name)(*asked), getattr(theirs, name)(*asked), strict=True):
            assert one.tolist() == other.tolist()
    assert {split: ours.num_rows(split) for split in SPLITS} == SPLITS
    exact = theirs.mean_lengths()
    assert ours.mean_lengths() == pytest.approx(exact, rel=0.2)
    assert ours.mean_lengths()["history_item"] > 1


def test_what_rows_do_not_have_is_refused(dataset, tmp_path):
    with pytest.raises(DataError, match="max_len = 6") as refused:
        streamed(dataset, max_len=7)
    assert "7 positives" in str(refused.value)
    with pytest.raises(DataError, match="rows"):
        streamed(Dataset(write_small_dataset(str(tmp_path / "plain"))))
    with pytest.raises(DataError, match="3 rows for 4 ranks"):
        streamed(dataset).training(Asked(3, 0, 4), seed=0)


def test_an_id_outside_its_table_is_named_with_its_file(tmp_path):
    folder = str(tmp_path / "d")
    with_rows(folder)
    path = f"{folder}/rows/valid/part-00000.parquet"
    table = pq.read_table(path)
    items = table["item_row"].to_numpy().copy()
    items[5] = 40
    pq.write_table(table.set_column(2, "item_row", pa.array(items, pa.int32())), path)
    describe_again(folder, rows=RowFacts(max_len=6, events="positives"))
    with pytest.raises(DataError, match="id outside its table") as refused:
        list(streamed(Dataset(folder)).evaluation("valid", "online", Asked(50)))
    assert (refused.value.row, refused.value.value) == (6, 40)
    assert str(refused.value.file).endswith("rows/valid/part-00000.parquet")
