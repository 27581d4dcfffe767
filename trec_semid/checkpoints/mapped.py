"""Rows of a table that stood for other things in the order of another dataset, put where they belong now."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trec_semid.core.arrays import Ints
from trec_semid.core.errors import CheckpointError
from trec_semid.sharding.tables import table_shards


class RowMap(NamedTuple):
    """Which row of a saved table each row of a table takes over."""

    old_rows: Ints
    """(rows of the table,): a row of the saved one; -1 for a row that begins anew."""
    num_old: int
    """Rows of the saved table."""

    @property
    def num_taken(self) -> int:
        """Rows that are taken over."""
        return int((self.old_rows >= 0).sum())


def every_row(num_rows: int) -> RowMap:
    """Return the map of a table whose rows are as they were saved."""
    return RowMap(np.arange(num_rows), num_rows)


def expect_mappable(name: str, saved: tuple[int, ...], now: tuple[int, ...], rows: RowMap) -> None:
    """Refuse tables whose rows are of another width, or other rows than the map is for.

    Raises:
        CheckpointError: names the table.
    """
    expected = (rows.num_old, *now[1:])
    if saved != expected or now[0] != len(rows.old_rows):
        raise CheckpointError(
            f"{name}: the checkpoint has {saved}, and rows are taken over from a table of {expected}. "
            "Use the model and the tables of the run that saved it."
        )


@torch.no_grad()
def take_rows(weight: Any, saved: Tensor, rows: RowMap) -> None:
    """Copy rows of a whole saved tensor (rows, D) or (rows,) into its parts on this rank; others stay.

    Where D is 1, either may be without it.
    """
    for first_row, first_column, part in table_shards(weight):
        old = torch.from_numpy(rows.old_rows[first_row : first_row + part.shape[0]])
        is_taken = old >= 0
        taken = saved[old[is_taken]]
        if taken.ndim == part.ndim == 2:
            taken = taken[:, first_column : first_column + part.shape[1]]
        part[is_taken.to(part.device)] = taken.reshape(len(taken), *part.shape[1:]).to(part)
