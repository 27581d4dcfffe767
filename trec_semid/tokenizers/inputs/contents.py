"""Item content as tokenizers read it: vectors of every modality and which of them are there.

Legend: B items of a batch, N items, M modalities.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trec_semid.core.arrays import Array, Ints
from trec_semid.core.errors import DataError


class Contents(NamedTuple):
    """Content of B items, in the tokenizer's order of modalities."""

    vectors: tuple[Tensor, ...]
    """One (B, dim_m) float32 for each modality; rows that are not present are zeros."""
    present: Tensor
    """(B, M) bool: which items have which modality."""

    def to(self, device: torch.device) -> "Contents":
        """Copy to a device."""
        return Contents(tuple(part.to(device) for part in self.vectors), self.present.to(device))


class Standardised(NamedTuple):
    """Content of B items in the space a tokenizer works in. D = sum of the modalities' widths."""

    x: Tensor
    """(B, D) float32; zeros where a modality is missing."""
    modalities: Tensor
    """(B, M) bool: which items have which modality."""


@dataclass(frozen=True)
class ItemContents:
    """Content of all items as arrays on disk or in memory; batches of it are checked as they are read."""

    vectors: Mapping[str, Array]
    """Modality to (N, dim) float16 or float32, memory-mapped where large."""
    present: Mapping[str, Array]
    """Modality to (N,) bool."""

    def __post_init__(self) -> None:
        if not self.vectors:
            raise DataError("no content to tokenize", remedy="Prepare the dataset with at least one modality")
        for name, vectors in self.vectors.items():
            for what, length in (("vectors", len(vectors)), ("mask", len(self.present[name]))):
                if length != self.num_items:
                    problem = f"{what} of {length} items, others have {self.num_items}"
                    raise DataError(problem, field=name, remedy="Prepare the dataset again")

    @property
    def num_items(self) -> int:
        """N."""
        return len(next(iter(self.vectors.values())))

    @property
    def dims(self) -> dict[str, int]:
        """Width of each modality."""
        return {name: vectors.shape[1] for name, vectors in self.vectors.items()}

    def batch(self, rows: Ints) -> Contents:
        """Read items.

        Args:
            rows: (B,) item rows, in any order.

        Raises:
            DataError: a vector that is present holds NaN or infinity, or is zeros.
        """
        read = [self.modality(name, rows) for name in self.vectors]
        present = torch.stack([present for _, present in read], dim=1)
        return Contents(tuple(vectors for vectors, _ in read), present)

    def modality(self, name: str, rows: Ints) -> tuple[Tensor, Tensor]:
        """Read one modality of items: vectors (B, dim) float32, zeros where missing, and presence (B,).

        Raises:
            DataError: as `batch`.
        """
        present = torch.from_numpy(np.array(self.present[name][rows], dtype=bool))
        vectors = torch.from_numpy(np.ascontiguousarray(self.vectors[name][rows])).float()
        vectors = torch.where(present.unsqueeze(1), vectors, 0.0)
        faults = {
            "NaN or infinite content": ~vectors.isfinite().all(1),
            "a vector of zeros, which has no direction": present & ~vectors.any(1),
        }
        for problem, wrong in faults.items():
            if wrong.any():
                row = int(rows[int(wrong.nonzero()[0])]) + 1
                remedy = "Mend the vector or mark it as missing, and prepare the data again"
                raise DataError(problem, row=row, field=name, remedy=remedy)
        return vectors, present

    def rows_with_content(self) -> Ints:
        """Return (n,) the rows of items that have at least one modality."""
        return np.flatnonzero(np.any([self.present[name] for name in self.vectors], axis=0))

    def chunks(self, rows: Ints, chunk_rows: int) -> Iterator[tuple[Ints, Contents]]:
        """Yield items `rows` (n,) in chunks of at most `chunk_rows`, with their rows."""
        for start in range(0, len(rows), chunk_rows):
            part = rows[start : start + chunk_rows]
            yield part, self.batch(part)


def require_items(num_items: int, codebook_size: int, *, field: str | None = None) -> None:
    """Refuse to fit more codes than there are items.

    Raises:
        DataError: naming the modality, on every rank alike.
    """
    if num_items < codebook_size:
        problem = f"a codebook of {codebook_size} codes needs at least as many items with content"
        remedy = "Lower tokenizer.codebook_size or bring more items"
        raise DataError(problem, field=field, value=num_items, remedy=remedy)
