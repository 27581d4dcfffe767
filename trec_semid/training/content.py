"""Content of a dataset into sharded tables."""

import numpy as np
import torch
from torch import Tensor, nn

from trec_semid.embeddings.content_tables import ContentTables, content_table
from trec_semid.sharding.tables import find_tables, table_shards
from trec_semid.tokenizers.contents import Catalogue

_ROWS_AT_ONCE = 65_536


@torch.no_grad()
def fill_content(tables: nn.Module, catalogue: Catalogue) -> None:
    """Write each rank's part of every modality's table, and the presence masks.

    Args:
        tables: `ContentTables`, sharded or not.
        catalogue: the same modalities and items; read where this rank's shards lie.
    """
    weights = tables.state_dict()
    parts = {table.name: table_shards(weights[table.key]) for table in find_tables(tables)}
    for name, vectors in catalogue.vectors.items():
        for first_row, first_column, part in parts[content_table(name)]:
            for start in range(0, part.shape[0], _ROWS_AT_ONCE):
                piece = part[start : start + _ROWS_AT_ONCE]
                rows = slice(first_row + start, first_row + start + len(piece))
                piece.copy_(
                    _columns(vectors[rows], catalogue.present[name][rows], first_column, part.shape[1])
                )
    masks = np.stack([np.asarray(catalogue.present[name], bool) for name in catalogue.vectors], axis=1)
    holder = next(module for module in tables.modules() if isinstance(module, ContentTables))
    holder.present.copy_(torch.from_numpy(masks))


def _columns(vectors: np.ndarray, present: np.ndarray, first: int, width: int) -> Tensor:
    """Return columns of the vectors in half precision, zeros where missing or past their end."""
    known = np.where(np.asarray(present, bool)[:, None], vectors[:, first : first + width], 0)
    filled = torch.zeros(len(vectors), width, dtype=torch.float16)
    filled[:, : known.shape[1]] = torch.from_numpy(np.ascontiguousarray(known)).half()
    return filled
