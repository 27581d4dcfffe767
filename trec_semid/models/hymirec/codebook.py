"""What a long history holds of an item: its codes and coefficients, read through the tokenizer's codebook.

Legend: N items, V of them read, R positions, K codes, E width of what codes stand for, D width.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from trec_semid.layers.quantize import sum_codewords
from trec_semid.tokenizers.maps.compressed import CompressedItems


@final
class CodebookReader(nn.Module):
    """x(i) = W sum_r a_ir C_r[c_ir] + b: what codes and coefficients rebuild of an item, brought to width D.

    C are the directions of the tokenizer's saved codebook, a the coefficients beside the codes, restored from
    what is stored; the mean that a reconstruction adds is a part of b. Codewords go through W, not items: a
    step multiplies R K of them, however many items histories name. So a new item is read without anything
    learnt of it. Source of the codebook: HyMiRec, 2025, as far as it is public; W is ours.
    """

    codewords: Tensor
    stored: Tensor | None
    grid: Tensor | None

    def __init__(self, compressed: CompressedItems, dim: int, *, learns: bool) -> None:
        """Take a codebook, and what is stored of items.

        Args:
            compressed: of the items, in row order.
            dim: D.
            learns: whether codewords learn with the model, from where the tokenizer has them.
        """
        super().__init__()
        if learns:
            self.codewords = nn.Parameter(compressed.codewords.clone())
        else:
            self.register_buffer("codewords", compressed.codewords)
        for name in ("stored", "grid"):
            self.register_buffer(name, getattr(compressed, name))
        self.project = nn.Linear(compressed.codewords.shape[2], dim)

    def forward(self, rows: Tensor, codes: Tensor) -> Tensor:
        """Return (V, D).

        Args:
            rows: (V,) int64 item rows.
            codes: (V, R) int64 of these; K where missing, which adds nothing.
        """
        with torch.autocast(rows.device.type, enabled=False):  # weights of a sum have its type
            projected = pad(self.codewords @ self.project.weight.T, (0, 0, 0, 1))
            return sum_codewords(projected, codes, self._coefficients(rows)) + self.project.bias

    def _coefficients(self, rows: Tensor) -> Tensor | None:
        """Return (V, R) float32; None where codes say all."""
        if self.stored is None or self.grid is None:
            return None
        low, step = self.grid
        return low + self.stored[rows] * step
