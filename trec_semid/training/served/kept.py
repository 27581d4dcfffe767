"""Rows that are asked for again and again, in a file of a local disk that is mapped into memory.

The kernel takes back the memory of a mapped file where others need it. Legend: N rows, n of a stretch.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def keep_rows(place: str, read: Callable[[int, int], Tensor], num_rows: int, rows_at_once: int) -> Tensor:
    """Return all (N, ...) rows; memory is that of a stretch while the file is written.

    Args:
        place: of the file, which has to stay as long as the rows are used.
        read: gives (n, ...) float32 rows, from one up to another.
        num_rows: N, 1 or more.
        rows_at_once: n, at most.
    """
    shape: tuple[int, ...] = ()
    with open(place, "wb") as file:
        for first in range(0, num_rows, rows_at_once):
            rows = read(first, min(first + rows_at_once, num_rows)).float().contiguous()
            shape = tuple(rows.shape[1:])
            file.write(rows.numpy().data)
    # Copied where it is written to, which nobody does: torch warns of memory that cannot be.
    return torch.from_numpy(np.memmap(place, np.float32, "c", shape=(num_rows, *shape)))
