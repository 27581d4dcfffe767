import torch

from trec_semid.embeddings.collection import PooledTables
from trec_semid.embeddings.tables import BLOCK_ROWS, TablesConfig, TableSpec, initial_rows
from trec_semid.sharding.initialise import initialise_tables


def test_an_unsharded_table_gets_the_rows_that_seed_and_name_give():
    rows = BLOCK_ROWS + 3
    tables = PooledTables([TableSpec("t_item_id", rows, ("item_id",))], TablesConfig(dim=4), ["item_id"])
    initialise_tables(tables, std=0.2, seed=9)
    expected = initial_rows("t_item_id", 4, 0, rows, std=0.2, seed=9)
    assert torch.equal(next(iter(tables.state_dict().values())), expected)
