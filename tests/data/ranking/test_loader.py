import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.datasets import write_small_dataset
from trec_semid.data.batches import RankingBatch
from trec_semid.data.epochs import EpochBatches
from trec_semid.data.features import FeaturesConfig
from trec_semid.data.histories import HistoryConfig
from trec_semid.data.ranking.batch_maker import BatchMaker, part_of
from trec_semid.data.ranking.dataset import RankingData
from trec_semid.data.ranking.source import Asked, Codes
from trec_semid.data.schema import Dataset, Split
from trec_semid.runtime.prefetch import prefetch


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset(write_small_dataset(str(tmp_path_factory.mktemp("data") / "d")))


@pytest.fixture(scope="module")
def codes(dataset):
    rng = np.random.default_rng(0)
    return Codes(rng.integers(0, [5, 7], size=(dataset.facts.num_items, 2)).astype(np.int32), (4, 6))


def ranking_data(dataset, codes, representation="both", least=0, **history) -> RankingData:
    features = FeaturesConfig(id_min_events=least)
    return RankingData(dataset, features, HistoryConfig(**history), representation, codes)


def maker_of(data: RankingData, split: Split) -> BatchMaker:
    return data.maker_of(data.rows(split, "online"))


def features_of(batch: RankingBatch) -> dict[str, list[list[int]]]:
    num_rows = len(batch.labels)
    lists, at = {}, 0
    for number, key in enumerate(batch.features.keys):
        lengths = batch.features.lengths[number * num_rows : (number + 1) * num_rows].tolist()
        lists[key] = []
        for length in lengths:
            lists[key].append(batch.features.values[at : at + length].tolist())
            at += length
    assert at == len(batch.features.values)
    return lists


def test_a_batch_equals_one_put_together_row_by_row(dataset, codes):
    maker = maker_of(ranking_data(dataset, codes, max_len=6), "test")
    chosen = np.array([5, 0, 200, 17])
    found = features_of(maker.make(chosen, 4))
    events = dataset.events().to_pandas()
    test = events[events.split == "test"].reset_index(drop=True)
    items, users = dataset.items().to_pandas(), dataset.users().to_pandas()
    for at, row in enumerate(chosen):
        event = test.iloc[row]
        before = events[(events.user_row == event.user_row) & (events.timestamp < event.timestamp)]
        history = before[before.label > 0.5].item_row.tolist()[-6:]
        assert found["user_id"][at] == [event.user_row]
        assert found["item_id"][at] == [event.item_row]
        assert found["user_age"][at] == [users.age[event.user_row]]
        assert found["item_genres"][at] == list(items.genres[event.item_row])
        assert found["item_year"][at] == [items.year[event.item_row]]
        assert found["history_item"][at] == history
        for position in range(2):
            assert found[f"item_code_{position}"][at] == [codes.codes[event.item_row, position]]
            assert found[f"history_code_{position}"][at] == codes.codes[history, position].tolist()


def test_items_of_few_training_events_are_without_their_ids_and_nothing_else_changes(dataset, codes):
    whole, gated = (maker_of(ranking_data(dataset, codes, least=n, max_len=6), "test") for n in (0, 42))
    events = dataset.events().to_pandas()
    counts = events[events.split == "train"].item_row.value_counts()
    has_id = {item for item, number in counts.items() if number >= 42}
    chosen = np.arange(len(whole.rows.labels))
    expected, found = (features_of(maker.make(chosen, len(chosen))) for maker in (whole, gated))
    for name in ("item_id", "history_item"):
        expected[name] = [[item for item in bag if item in has_id] for bag in expected[name]]
    assert found == expected
    assert 5 < len(has_id) < 35
    assert gated.make_part(chosen[:1], 1, 2).features.lengths.tolist() == [0] * len(expected)


@pytest.mark.parametrize(
    ("representation", "present", "absent"),
    [
        ("item", {"item_id", "history_item"}, {"item_code_0", "history_code_0"}),
        ("semantic", {"item_code_0", "history_code_1"}, {"item_id", "history_item"}),
        ("both", {"item_id", "history_item", "item_code_1", "history_code_0"}, set()),
    ],
)
def test_the_representation_decides_which_features_there_are(dataset, codes, representation, present, absent):
    names = {feature.name for feature in ranking_data(dataset, codes, representation).features}
    assert present <= names
    assert not absent & names


def test_target_and_history_read_the_same_tables(dataset, codes):
    tables = {feature.name: feature.table for feature in ranking_data(dataset, codes).features}
    assert tables["item_id"] == tables["history_item"] == "t_item_id"
    assert tables["item_code_1"] == tables["history_code_1"] == "t_code_1"


def test_no_history_when_its_length_is_zero(dataset, codes):
    names = [feature.name for feature in ranking_data(dataset, codes, max_len=0).features]
    assert not [name for name in names if name.startswith("history")]


@given(st.integers(0, 30), st.integers(1, 6))
def test_parts_of_ranks_are_contiguous_cover_all_and_differ_by_one_row(num_rows, world_size):
    rows = np.arange(num_rows)
    parts = [part_of(rows, rank, world_size) for rank in range(world_size)]
    assert np.concatenate(parts).tolist() == rows.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def loader(dataset, codes, *, rank=0, world_size=1, batch_size=400, seed=3) -> EpochBatches[RankingBatch]:
    return ranking_data(dataset, codes, max_len=4).training(Asked(batch_size, rank, world_size), seed)


def test_an_epoch_holds_every_row_once_in_an_order_of_its_own(dataset, codes):
    train = loader(dataset, codes)
    first, second = (torch.cat([batch.rows for batch in train.batches()]).tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(1701))
    assert first != second
    assert first == torch.cat([batch.rows for batch in loader(dataset, codes).batches()]).tolist()


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 400), (4, 340), (3, 1700)])
def test_ranks_together_hold_the_batch_of_one_rank_in_equal_shapes(dataset, codes, world_size, batch_size):
    alone = list(loader(dataset, codes, batch_size=batch_size).batches())
    ranks = [
        list(loader(dataset, codes, rank=r, world_size=world_size, batch_size=batch_size).batches())
        for r in range(world_size)
    ]
    for step, whole in enumerate(alone):
        parts = [batches[step] for batches in ranks]
        assert {part.global_size for part in parts} == {whole.global_size} == {len(whole.rows)}
        assert len({len(part.labels) for part in parts}) == 1
        rows = torch.cat([part.rows[part.weights > 0] for part in parts])
        assert rows.tolist() == whole.rows.tolist()
        assert sum(part.weights.sum() for part in parts) == whole.global_size
    assert {len(batches) for batches in ranks} == {len(alone)}
    assert alone[-1].global_size < batch_size


def test_a_padding_row_has_no_ids_and_weight_zero(dataset, codes):
    maker = maker_of(ranking_data(dataset, codes), "valid")
    batch = maker.make_part(np.array([4]), 1, 3)
    assert batch.rows.tolist() == [-1]
    assert batch.weights.tolist() == [0]
    assert batch.labels.tolist() == [0]
    assert len(batch.features.values) == 0
    assert batch.features.lengths.tolist() == [0] * len(batch.features.keys)
    assert batch.global_size == 1


def test_going_on_from_a_saved_position_yields_the_rest_and_then_the_next_epoch(dataset, codes):
    whole = loader(dataset, codes)
    expected = [batch.rows.tolist() for _ in range(2) for batch in whole.batches()]
    stopped = loader(dataset, codes)
    batches = stopped.batches()
    seen = [next(batches).rows.tolist() for _ in range(2)]
    position = stopped.state_dict()
    batches.close()
    resumed = loader(dataset, codes)
    resumed.load_state_dict(position)
    rest = [batch.rows.tolist() for _ in range(2) for batch in resumed.batches()]
    assert seen + rest == expected


def test_a_position_at_the_end_of_an_epoch_goes_on_with_the_next(dataset, codes):
    train = loader(dataset, codes)
    train.load_state_dict({"epoch": 0, "step": train.steps_per_epoch})
    assert list(train.batches()) == []
    assert train.state_dict() == {"epoch": 1, "step": 0}


def test_evaluation_reads_a_split_in_order_over_all_ranks(dataset, codes):
    data = ranking_data(dataset, codes)
    ranks = [list(data.evaluation("test", "frozen", Asked(50, r, 2))) for r in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == 5
    rows = torch.cat([batch.rows for batches in ranks for batch in batches])
    assert sorted(rows[rows >= 0].tolist()) == list(range(210))


def test_prefetch_keeps_order_and_hands_on_errors():
    def items():
        yield from range(5)
        raise ValueError("broken")

    seen = []
    with pytest.raises(ValueError, match="broken"):
        seen.extend(iter_all(prefetch(items()), seen))
    assert seen == list(range(5))


def iter_all(items, seen):
    for item in items:
        seen.append(item)
    return []


def test_batches_can_be_copied_to_a_device(dataset, codes):
    maker = maker_of(ranking_data(dataset, codes), "valid")
    batch = maker.make(np.arange(3), 3)
    moved = batch.to(torch.device("cpu"))
    assert moved.features.keys == batch.features.keys
    torch.testing.assert_close(moved.features.values, batch.features.values)
