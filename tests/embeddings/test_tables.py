import pytest
import torch

from trec_semid.embeddings.tables import BLOCK_ROWS, TablesConfig, TableSpec, bag_configs, initial_rows


def test_any_range_of_rows_equals_the_same_rows_of_the_whole_table():
    whole = initial_rows("t_item_id", 4, 0, 3 * BLOCK_ROWS, std=0.5, seed=7)
    for first, size in [(0, 1), (BLOCK_ROWS - 2, 4), (5, 2 * BLOCK_ROWS), (BLOCK_ROWS, BLOCK_ROWS), (9, 0)]:
        part = initial_rows("t_item_id", 4, first, size, std=0.5, seed=7)
        assert torch.equal(part, whole[first : first + size])


def test_rows_are_normal_with_the_given_spread_and_differ_by_table_and_seed():
    rows = initial_rows("t_a", 16, 0, BLOCK_ROWS, std=0.01, seed=1)
    assert abs(rows.mean().item()) < 1e-4
    assert rows.std().item() == pytest.approx(0.01, rel=0.02)
    assert not torch.equal(rows, initial_rows("t_b", 16, 0, BLOCK_ROWS, std=0.01, seed=1))
    assert not torch.equal(rows, initial_rows("t_a", 16, 0, BLOCK_ROWS, std=0.01, seed=2))


def test_bag_configs_carry_names_sizes_and_shared_features():
    (config,) = bag_configs([TableSpec("t_item_id", 9, ("item_id", "history_item"))], TablesConfig(dim=8))
    assert (config.name, config.num_embeddings, config.embedding_dim) == ("t_item_id", 9, 8)
    assert config.feature_names == ["item_id", "history_item"]
    assert config.pooling.name == "SUM"  # means are made by PooledTables
