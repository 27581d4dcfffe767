"""The role of heads: what a sequence model says of the next item's codes.

Legend: P places that predict, W targets a place, R positions, K codes, D width.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from trec_semid.models.heads.beams import NextLogProbs


class CodeHeads(nn.Module, ABC):
    """p(c_1 .. c_R | u) from a state u, over the rows of the code tables."""

    @property
    @abstractmethod
    def is_independent(self) -> bool:
        """Whether p(c_1 .. c_R | u) = prod_r p(c_r | u): only then an item's score is a sum of R numbers."""

    @abstractmethod
    def loss(self, states: Tensor, tables: Tensor, codes: Tensor) -> Tensor:
        """Return (P, W): mean over positions of -log p(c_r | ..); 0 where there is no target.

        Args:
            states: (P, D).
            tables: (R, K + 1, D).
            codes: (P, W, R) of the targets; -1 where there is none.
        """

    @abstractmethod
    def next_log_probs(self, states: Tensor, tables: Tensor) -> NextLogProbs:
        """Return what a beam search asks.

        Args:
            states: (B, D) of the users.
            tables: (R, K + 1, D).
        """

    def log_probs(self, states: Tensor, tables: Tensor) -> Tensor:
        """Return (P, R, K + 1), log p(c_r = k | u); asked only where `is_independent`.

        Args:
            states: (P, D).
            tables: (R, K + 1, D).
        """
        raise NotImplementedError(f"{type(self).__name__}: codes depend on those before them.")
