import numpy as np
import pytest
import torch

from tests.datasets import write_small_dataset
from trec_semid.core.errors import ConfigError
from trec_semid.data.features import FeaturesConfig
from trec_semid.data.histories import HistoryConfig
from trec_semid.data.prefixes import PrefixConfig, prefix_ids, prefix_rows
from trec_semid.data.ranking.dataset import RankingData
from trec_semid.data.ranking.source import Codes
from trec_semid.data.schema import Dataset

SIZES = (4, 3, 5)
MANY = (3000, 3000, 7, 3000, 3000, 3000)


def drawn(num_items: int = 200) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, size + 1, num_items) for size in SIZES], axis=1)


def test_a_small_table_has_a_row_for_every_prefix_without_collisions():
    codes = drawn()
    config = PrefixConfig(lengths=(1, 2, 3), num_rows=1000)
    ids = prefix_ids(torch.from_numpy(codes), SIZES, config).numpy()
    for column, length in enumerate(config.lengths):
        tuples = [tuple(row) for row in codes[:, :length].tolist()]
        pairs = set(zip(tuples, ids[:, column].tolist(), strict=True))
        assert len(pairs) == len(set(tuples)) == len(set(ids[:, column].tolist()))
        assert ids[:, column].max() < prefix_rows(SIZES, length, 1000)
    assert [prefix_rows(SIZES, length, 1000) for length in (1, 2, 3)] == [5, 20, 120]


def test_hashed_prefixes_depend_on_every_code_and_spread_evenly():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 3000, (200_000, 4))
    ids = prefix_ids(
        torch.from_numpy(codes), (3000,) * 4, PrefixConfig(lengths=(2, 4), num_rows=1000)
    ).numpy()
    assert ids.min() >= 0
    assert ids.max() < 1000
    counts = np.bincount(ids[:, 1], minlength=1000)
    assert abs((counts - 200) ** 2 / 200).sum() < 1300  # chi square of 999 degrees of freedom
    again = prefix_ids(
        torch.from_numpy(codes), (3000,) * 4, PrefixConfig(lengths=(2, 4), num_rows=1000)
    ).numpy()
    np.testing.assert_array_equal(ids, again)
    for position in range(4):
        other = codes.copy()
        other[:, position] = (other[:, position] + 1) % 3000
        found = prefix_ids(torch.from_numpy(other), (3000,) * 4, PrefixConfig(lengths=(2, 4), num_rows=1000))
        moved = found.numpy() != ids
        assert moved[:, 1].mean() > 0.99
        assert moved[:, 0].mean() == (0 if position >= 2 else pytest.approx(1, abs=0.01))


def mixed(key: int) -> int:
    """Return splitmix64's finaliser on Python's own integers."""
    key = (key + 0x9E3779B97F4A7C15) % 2**64
    key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ (key >> 27)) * 0x94D049BB133111EB % 2**64
    return key ^ (key >> 31)


def prefix_by_hand(codes: list[int], length: int, num_rows: int) -> int:
    number, possible, hashed = 0, 1, 0
    for code, size in zip(codes[:length], MANY, strict=False):
        number, possible, hashed = number * (size + 1) + code, possible * (size + 1), mixed(hashed) ^ code
    return number if possible < num_rows else mixed(hashed) % num_rows


@pytest.mark.parametrize("num_rows", [50, 997, 1 << 20])
@pytest.mark.parametrize("kind", [torch.int16, torch.int64])
def test_rows_are_those_of_whole_numbers_without_an_end(num_rows, kind):
    rng = np.random.default_rng(2)
    codes = np.stack([rng.integers(0, size + 1, 1000) for size in MANY], axis=1)
    config = PrefixConfig(lengths=(1, 2, 3, 6), num_rows=num_rows)
    found = prefix_ids(torch.from_numpy(codes).to(kind), MANY, config).tolist()
    assert found == [[prefix_by_hand(row, n, num_rows) for n in config.lengths] for row in codes.tolist()]


def test_ranking_batches_carry_the_prefixes_of_targets_and_histories(tmp_path):
    dataset = Dataset(write_small_dataset(str(tmp_path / "d")))
    rng = np.random.default_rng(2)
    codes = Codes(rng.integers(0, 4, (40, 3)).astype(np.int32), (4, 4, 4))
    prefixes = PrefixConfig(lengths=(2, 3), num_rows=50)
    data = RankingData(
        dataset, FeaturesConfig(prefixes=prefixes), HistoryConfig.model_validate({}), "both", codes
    )
    sizes = {feature.name: (feature.table, feature.num_rows) for feature in data.features}
    assert sizes["item_prefix_2"] == sizes["history_prefix_2"] == ("t_prefix_2", 25)
    assert sizes["item_prefix_3"] == ("t_prefix_3", 50)
    maker = data.maker_of(data.rows("train", "frozen"))
    batch = maker.make(np.arange(30, 50), 20)
    lengths = batch.features.lengths.view(len(data.features), -1)
    parts = dict(zip(batch.features.keys, batch.features.values.split(lengths.sum(1).tolist()), strict=True))
    ids = prefix_ids(torch.from_numpy(codes.codes), codes.sizes, prefixes).numpy()
    for column, length in enumerate(prefixes.lengths):
        for entity, rows in (("item", parts["item_id"]), ("history", parts["history_item"])):
            found = parts[f"{entity}_prefix_{length}"].numpy()
            np.testing.assert_array_equal(found, ids[rows.numpy(), column])
    assert len(parts["history_item"])


def test_a_prefix_longer_than_the_semantic_id_is_refused(tmp_path):
    dataset = Dataset(write_small_dataset(str(tmp_path / "d")))
    codes = Codes(np.zeros((40, 2), np.int32), (4, 4))
    with pytest.raises(ConfigError, match="a prefix of 3 codes, but semantic IDs have 2"):
        RankingData(
            dataset,
            FeaturesConfig(prefixes=PrefixConfig()),
            HistoryConfig.model_validate({}),
            "semantic",
            codes,
        )


def test_lengths_must_rise():
    with pytest.raises(ValueError, match="lengths must rise"):
        PrefixConfig(lengths=(3, 2))
