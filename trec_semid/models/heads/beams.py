"""What a beam search and a model say to each other, code by code.

Legend: B users, W beams of the step at hand, K_r codes of position r ('missing' included where the model
knows it).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor


class Beams(NamedTuple):
    """The best prefixes of every user, best first; equal ones by lower prefix.

    W is 1 before the first code and grows with what the trie offers, up to the asked width. A user with
    fewer prefixes has beams of score -inf at the end, whose codes are valid but mean nothing.
    """

    codes: Tensor
    """(B, W, r) int64: codes so far."""
    parents: Tensor
    """(B, W) int64: the beam of the step before that each one goes on from; reorder caches by it."""
    scores: Tensor
    """(B, W) float32: sum of log-probabilities so far."""
    nodes: Tensor
    """(B, W) int64: nodes of the trie."""


NextLogProbs = Callable[[int, Beams], Tensor]
"""What a model says of position r: (B, W, K_r) given (r, beams), or (B, 1, K_r) if it ignores the prefix."""


def parallel_heads(log_probs: Sequence[Tensor]) -> NextLogProbs:
    """Return the step function of a model that predicts every position at once.

    Args:
        log_probs: R of (B, K_r).
    """
    return lambda position, beams: log_probs[position].unsqueeze(1)
