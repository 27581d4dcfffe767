"""Initial weights of sharded tables, equal for every plan and number of ranks."""

import torch
from torch import nn

from trec_semid.embeddings.tables import BLOCK_ROWS, initial_rows
from trec_semid.sharding.tables import find_tables, table_shards

_ROWS_AT_ONCE = 64 * BLOCK_ROWS


def initialise_tables(model: nn.Module, *, std: float, seed: int) -> None:
    """Write initial weights into the parts of all tables that lie on this rank.

    To be called after sharding, which fills tables with numbers of its own.
    """
    weights = model.state_dict()
    for table in find_tables(model):
        for first_row, first_column, part in table_shards(weights[table.key]):
            columns = slice(first_column, first_column + part.shape[1])
            for start in range(0, part.shape[0], _ROWS_AT_ONCE):
                piece = part[start : start + _ROWS_AT_ONCE]
                rows = initial_rows(table.name, table.dim, first_row + start, len(piece), std=std, seed=seed)
                with torch.no_grad():
                    piece.copy_(rows[:, columns])
