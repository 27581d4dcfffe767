"""What every ranker is: pooled tables, a dense part over them, and the loss outside the serving path."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trec_semid.core.config import Config
from trec_semid.embeddings.collection import PooledTables


class RankerConfig(Config):
    """What `[model]` says of a ranker. A kind's own class gives `kind` its name and adds sizes."""

    kind: Any


class DenseRanker(nn.Module, ABC):
    """Maps the embedded features of B rows, (B, F * dim) in feature order, to logits (B,).

    It is all that a method of ranking is: tables, what describes an item and the loss are every ranker's.
    It is built from its config, F features in the order of the columns, and the columns of each; it refuses
    what a config asks of missing features by `ConfigError`. Its state is what a checkpoint and the dense
    program of a bundle hold.
    """

    @abstractmethod
    def forward(self, embedded: Tensor) -> Tensor:
        """Return one logit a row."""

    def of_requests(self, is_shared: Sequence[bool]) -> nn.Module | None:
        """Return what gives the same logits and reads a request once; None where nothing is won.

        It takes what is shared of Q requests, (Q, S * dim), what is a row's own, (B, I * dim), and which
        request each row is of, (B,) int64; either in feature order. It returns (B,) logits, as in evaluation.

        Args:
            is_shared: F, of features that are alike for all rows of a request: S are, and I are not.
        """
        return None


@final
class Ranker(nn.Module):
    """Tables and dense part together: ids to logits. Runs unsharded; sharding is applied from outside."""

    def __init__(self, sparse: PooledTables, dense: DenseRanker) -> None:
        super().__init__()
        self.sparse, self.dense = sparse, dense

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Return (B,) logits."""
        return self.dense(self.sparse(features))


class RankerOutput(NamedTuple):
    """What one rank says of its part of a batch."""

    loss: Tensor
    """() this rank's part of the loss, times the number of ranks: its mean over ranks is the global mean."""
    logits: Tensor
    """(B,)."""


@final
class RankerWithLoss(nn.Module):
    """Binary cross-entropy over the global batch.

    loss_rank = world_size / global_size * sum over the rank's rows of weight * BCE(logit, label).
    Gradients are averaged over ranks (sum divided by world_size), which leaves the gradient of the mean
    over the global batch whatever the number of ranks and however its rows are spread.
    """

    def __init__(self, ranker: Ranker, *, world_size: int) -> None:
        super().__init__()
        self.ranker, self.world_size = ranker, world_size

    def forward(
        self, features: KeyedJaggedTensor, labels: Tensor, weights: Tensor, global_size: int
    ) -> RankerOutput:
        """Return loss and logits of (B,) labels and weights (0 for padding rows)."""
        logits = self.ranker(features)
        total = functional.binary_cross_entropy_with_logits(logits, labels, weight=weights, reduction="sum")
        return RankerOutput(total * (self.world_size / global_size), torch.detach(logits))
