"""Dropout whose mask costs a byte of randomness an element where random numbers are drawn one by one."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

_LEVELS = 256


@final
class Dropout(nn.Module):
    """y = x * keep / P(keep), keep ~ Bernoulli(1 - p), as torch's; x itself in evaluation.

    On a CPU torch draws a number an element, one after the other: 30 % of a HeterRec step
    (docs/results/benchmarks.md). A byte an element takes an eighth of the draws; p is rounded to a multiple
    of 1 / 256, and P(keep) is what it is after that, so that E[y] = x, up to rounding of x's type. Source:
    Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def extra_repr(self) -> str:
        """Return the setting, for print."""
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        """Return what has the shape of x."""
        if not self.training or self.p == 0:
            return x
        dropped = round(self.p * _LEVELS)
        # A p that rounds to 0 or 1 cannot be said in 256ths; other devices draw numbers side by side anyway.
        if x.device.type != "cpu" or not 0 < dropped < _LEVELS:
            return dropout(x, self.p)
        # The range is all of int64 (None is its end), so that each of a number's 8 bytes is uniform.
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * keep.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))
