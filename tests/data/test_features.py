import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import describe_again, write_small_dataset
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.data.features import FeaturesConfig, describe_features
from trec_semid.data.histories import HistoryConfig
from trec_semid.data.ranking.dataset import RankingData
from trec_semid.data.ranking.source import Codes
from trec_semid.data.schema import Dataset


@pytest.fixture
def folder(tmp_path):
    return write_small_dataset(str(tmp_path / "d"))


def read(folder, codes=None, features=None) -> RankingData:
    representation = "item" if codes is None else "both"
    return RankingData(Dataset(folder), features or FeaturesConfig(), HistoryConfig(), representation, codes)


def replace(path, column, values, kind) -> None:
    table = pq.read_table(path)
    at = table.column_names.index(column)
    pq.write_table(table.set_column(at, column, pa.array(values, kind)), path)
    describe_again(path.split("/d/")[0] + "/d")


def test_side_fields_can_be_chosen(folder):
    names = [
        f.name for f in read(folder, features=FeaturesConfig(item_fields=["year"], user_fields=[])).features
    ]
    assert names == ["user_id", "item_id", "item_year", "history_item"]


def test_an_unknown_side_field_is_refused_with_the_nearest_name(folder):
    with pytest.raises(ConfigError, match=r"no field 'genre' in the dataset. Did you mean 'genres'"):
        read(folder, features=FeaturesConfig(item_fields=["genre"]))


def test_tables_of_codes_have_a_row_for_the_missing_code(folder):
    codes = Codes(np.full((40, 2), [3, 8], np.int32), (3, 8))
    sizes = {feature.name: feature.num_rows for feature in read(folder, codes).features}
    assert (sizes["item_code_0"], sizes["history_code_1"]) == (4, 9)


@pytest.mark.parametrize("wrong", [-1, 4])
def test_a_code_outside_its_table_is_refused_by_item(folder, wrong):
    codes = np.zeros((40, 1), np.int32)
    codes[12, 0] = wrong
    with pytest.raises(
        DataError, match=rf"row 13, field 'item_code_0': id outside its table \(got {wrong}\)"
    ):
        read(folder, Codes(codes, (3,)))


def test_a_list_field_with_an_id_outside_its_table_is_refused_by_item(folder):
    genres = pq.read_table(f"{folder}/items.parquet")["genres"].to_pylist()
    genres[9] = [1, 7]
    replace(f"{folder}/items.parquet", "genres", genres, pa.list_(pa.int32()))
    with pytest.raises(DataError, match=r"items.parquet, row 10, field 'item_genres': .*\(got 7\)"):
        read(folder)


def test_a_plain_field_with_a_negative_id_is_refused_by_user(folder):
    ages = pq.read_table(f"{folder}/users.parquet")["age"].to_pylist()
    ages[3] = -2
    replace(f"{folder}/users.parquet", "age", ages, pa.int32())
    with pytest.raises(DataError, match=r"users.parquet, row 4, field 'user_age': .*\(got -2\)"):
        read(folder)


@pytest.mark.parametrize(("column", "size"), [("user_row", 60), ("item_row", 40)])
def test_an_event_of_an_entity_that_does_not_exist_is_refused_by_row(folder, column, size):
    path = f"{folder}/events/part-00000.parquet"
    rows = pq.read_table(path)[column].to_pylist()
    rows[1999] = size
    replace(path, column, rows, pa.int64())
    with pytest.raises(DataError, match=rf"row 2000, field '{column}': id outside its table \(got {size}\)"):
        read(folder)


def test_an_event_without_a_label_is_refused_by_row(folder):
    path = f"{folder}/events/part-00000.parquet"
    labels = pq.read_table(path)["label"].to_pylist()
    labels[1702] = None
    replace(path, "label", labels, pa.float32())
    data = read(folder)
    with pytest.raises(DataError, match="row 1703, field 'label': event without a label"):
        data.rows("valid", "online")


def test_two_features_of_one_name_are_refused(folder):
    dataset = Dataset(folder)
    dataset.facts = dataset.facts.model_copy(
        update={"item_fields": {"id": dataset.facts.item_fields["year"]}}
    )
    with pytest.raises(DataError, match="field 'item_id': two features have one name"):
        describe_features(dataset, FeaturesConfig(), "item", (), with_history=True)


def test_training_counts_are_those_of_the_events(folder):
    events = Dataset(folder).events(split="train").to_pandas()
    users, items = read(folder).train_counts()
    assert users.tolist() == events.user_row.value_counts().reindex(range(60), fill_value=0).tolist()
    assert items.tolist() == events.item_row.value_counts().reindex(range(40), fill_value=0).tolist()
