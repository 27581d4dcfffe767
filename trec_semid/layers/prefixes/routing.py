"""Dynamic routing of every prefix of a sequence to capsules.

Legend: B sequences, L places, T places that are routed for at once, M capsules, D width.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_LOGITS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Of B * T * M * L routing logits: 4 MiB in float32 on a CPU."""


def squash(vectors: Tensor) -> Tensor:
    """Return |s|^2 / (1 + |s|^2) * s / |s| of (..., D) vectors s."""
    squares = vectors.square().sum(-1, keepdim=True)
    return vectors * (squares / (1 + squares) / (squares + 1e-9).sqrt())


def causal_routing(mapped: Tensor, num_iterations: int, *, logits_at_once: int | None = None) -> Tensor:
    """Return the capsules (B, L, M, D) of every prefix: those at place t are routed from places s <= t.

    b = 0; then as often as asked: w = softmax over capsules of b; u_m = squash(sum_{s <= t} w_ms x_sm);
    b_ms += x_sm . u_m. All but the last sum are without a gradient. Source: Sabour et al., "Dynamic Routing
    Between Capsules", 2017, as in the code of ComiRec (Cen et al., KDD 2020).

    Routing logits are of each place's own prefix, L * L * M a sequence, so places are taken in stretches
    and routed once more in backward.

    Args:
        mapped: (B, L, M, D) x_sm, what place s says to capsule m.
        num_iterations: 3 as published.
        logits_at_once: bound on B * T * M * L; what suits the device where not given.
    """
    num_rows, length, num_capsules, _ = mapped.shape
    bound = logits_at_once or _LOGITS_AT_ONCE.get(mapped.device.type, _LOGITS_AT_ONCE["cpu"])
    width = max(1, bound // max(1, num_rows * num_capsules * length))
    parts: list[Tensor] = []
    for first in range(0, length, width):
        places = range(first, min(first + width, length))
        if width >= length:
            return _route(mapped, places, num_iterations)
        parts.append(
            checkpoint(
                _route,
                mapped[:, : places.stop],
                places,
                num_iterations,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        )
    return torch.cat(parts, dim=1)


def whole_routing(mapped: Tensor, is_there: Tensor, num_iterations: int) -> Tensor:
    """Return the capsules (B, M, D) of whole sequences, as `causal_routing` has them at their last place.

    Args:
        mapped: (B, L, M, D).
        is_there: (B, L) bool, which places a sequence has.
        num_iterations: as there.
    """
    return _routed(mapped.transpose(1, 2), is_there[:, None, None], num_iterations).squeeze(2)


def _route(mapped: Tensor, places: range, num_iterations: int) -> Tensor:
    """Return (B, T, M, D) at these places, from (B, L', M, D) of all places up to the last of them."""
    at = torch.arange(places.start, places.stop, device=mapped.device)
    is_read = torch.arange(mapped.shape[1], device=mapped.device) <= at.unsqueeze(1)  # (T, L')
    return _routed(mapped.transpose(1, 2), is_read, num_iterations).transpose(1, 2)


def _routed(told: Tensor, is_read: Tensor, num_iterations: int) -> Tensor:
    """Return (B, M, T, D) of what (B, M, L', D) say, as T places read them: (T, L') or (B, 1, T, L')."""
    fixed = told.detach()
    shape = (*told.shape[:2], is_read.shape[-2], told.shape[2])
    logits = torch.zeros(shape, dtype=torch.float32, device=told.device)  # (B, M, T, L')
    for _ in range(num_iterations - 1):
        with torch.no_grad():
            capsules = squash(_weights(logits, is_read, fixed.dtype) @ fixed)
            logits += capsules @ fixed.mT
    return squash(_weights(logits, is_read, told.dtype) @ told)


def _weights(logits: Tensor, is_read: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (B, M, T, L'): how a place is shared out among capsules, nothing of places after t."""
    return logits.softmax(1).mul(is_read).to(dtype)
