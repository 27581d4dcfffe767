"""Whether tensors hold numbers only, looked at where they lie."""

from collections.abc import Iterable

import torch
from torch import Tensor


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return the name of the first tensor with NaN or an infinite number in it; '' if there is none.

    Tensors may have any shape. Reads every number once, without a copy of the tensor, and waits for the
    device once. Tensors of whole numbers, and empty ones, pass.
    """
    looked_at = [(name, tensor) for name, tensor in named if tensor.is_floating_point() and tensor.numel()]
    if not looked_at:
        return ""
    # Both extremes of a tensor with NaN are NaN.
    extremes = [torch.stack(torch.aminmax(tensor.detach())).double() for _, tensor in looked_at]
    together = torch.stack([pair.to(extremes[0].device) for pair in extremes])
    bad = (~torch.isfinite(together)).any(1).nonzero()
    return looked_at[int(bad[0])][0] if len(bad) else ""
