import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.datasets import describe_again, write_small_dataset
from trec_semid.core.errors import DataError
from trec_semid.data.features import FeaturesConfig
from trec_semid.data.histories import HistoryConfig
from trec_semid.data.ranking.dataset import RankingData
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.strata import ACTIVITY, POPULARITY, strata_of_counts, training_strata


def named(codes, names):
    return [names[code].partition("_")[2] for code in codes]


def test_items_fall_into_quarters_by_training_events_and_equal_counts_by_row():
    strata = strata_of_counts(np.array([5, 0, 9, 1, 5, 2, 5, 1, 0, 7]), np.array([1]))
    # Seen, in order of (events, row): 3, 7, 5, 0, 4, 6, 9, 2; two in each outer quarter.
    wanted = ["middle", "unseen", "head", "tail", "middle", "middle", "middle", "tail", "unseen", "head"]
    assert named(strata.items, POPULARITY) == wanted


def test_users_fall_into_thirds_by_training_events():
    strata = strata_of_counts(np.array([1]), np.array([3, 3, 0, 8, 1, 2, 9, 3]))
    # Seen, in order: 4, 5, 0, 1, 7, 3, 6; thirds are rounded down to two.
    wanted = ["middle", "middle", "unseen", "high", "low", "low", "high", "middle"]
    assert named(strata.users, ACTIVITY) == wanted


def test_too_few_items_for_a_quarter_are_all_middle():
    assert named(strata_of_counts(np.array([4, 0, 1]), np.array([1])).items, POPULARITY) == [
        "middle",
        "unseen",
        "middle",
    ]


def test_strata_of_a_dataset_count_its_training_events_only(tmp_path):
    dataset = Dataset(write_small_dataset(str(tmp_path / "small")))
    strata = training_strata(dataset)
    events = dataset.events(["user_row", "item_row", "split"]).to_pandas()
    train = events[events.split == "train"]
    for codes, column, unseen in ((strata.items, "item_row", 3), (strata.users, "user_row", 3)):
        counts = train[column].value_counts().reindex(range(len(codes)), fill_value=0)
        assert set(np.flatnonzero(codes == unseen)) == set(counts.index[counts == 0])
        wanted = strata_of_counts(counts.to_numpy(), counts.to_numpy())
        np.testing.assert_array_equal(codes, wanted.items if column == "item_row" else wanted.users)
    assert named(strata.items[-2:], POPULARITY) == ["unseen", "unseen"]
    head = train.item_row.value_counts()
    assert (
        head.reindex(np.flatnonzero(strata.items == 0)).min()
        >= head.reindex(np.flatnonzero(strata.items == 1)).max()
    )


def test_sampled_negatives_are_no_training_events_for_strata_and_counts(tmp_path):
    folder = str(tmp_path / "small")
    dataset = Dataset(write_small_dataset(folder))
    item = int(np.argmax(training_strata(dataset).items == 0))
    file = next((tmp_path / "small" / "events").iterdir())
    table = pq.read_table(file)
    behaviours = pc.if_else(pc.equal(table["item_row"], item), "negative", table["behaviour"].cast("string"))
    at = table.schema.get_field_index("behaviour")
    table = table.set_column(at, table.schema.field(at), behaviours.cast(table.schema.field(at).type))
    pq.write_table(table, file)
    describe_again(folder)
    strata = training_strata(Dataset(folder))
    assert named(strata.items[[item]], POPULARITY) == ["unseen"]
    assert (strata.items == 3).sum() == 3  # the two that never had an event, and this one
    data = RankingData(Dataset(folder), FeaturesConfig(), HistoryConfig.model_validate({}), "item", None)
    users, items = data.train_counts()
    assert items[item] == 0
    np.testing.assert_array_equal(strata_of_counts(items, users).items, strata.items)
    np.testing.assert_array_equal(strata_of_counts(items, users).users, strata.users)


def test_masks_part_the_rows_twice():
    rng = np.random.default_rng(0)
    strata = strata_of_counts(rng.integers(0, 4, 50), rng.integers(0, 4, 30))
    users, items = rng.integers(0, 30, 500), rng.integers(0, 50, 500)
    masks = dict(strata.masks(users, items))
    assert tuple(masks) == POPULARITY + ACTIVITY
    for names in (POPULARITY, ACTIVITY):
        assert (np.sum([masks[name] for name in names], axis=0) == 1).all()
    np.testing.assert_array_equal(masks["popularity_tail"], strata.items[items] == 2)
    np.testing.assert_array_equal(masks["user_unseen"], strata.users[users] == 3)


def test_rows_of_another_dataset_are_refused():
    strata = strata_of_counts(np.ones(3), np.ones(3))
    with pytest.raises(DataError, match=r"row 2, field 'item_row'.*got 3"):
        dict(strata.masks(np.array([0, 0]), np.array([2, 3])))
    with pytest.raises(DataError, match=r"field 'user_row'.*got -1"):
        dict(strata.masks(np.array([-1]), np.array([0])))
