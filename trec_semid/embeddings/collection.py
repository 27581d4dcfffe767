"""Pooled embeddings of all features as one dense matrix, from tables that may be sharded."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torchrec.distributed.types import LazyAwaitable
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from trec_semid.embeddings.tables import TablesConfig, TableSpec, bag_configs


@final
class PooledTables(nn.Module):
    """One embedding-bag collection over all tables; output columns stand in the order of `features`.

    Input: a KeyedJaggedTensor over B rows. Output: (B, F * dim), feature after feature. Sharded
    collections return other key orders, so columns are put in place by key, never by position.

    Tables add up, and means are computed here: where a plan lays some tables by rows and others whole, a
    sharded collection divides the means of the latter a second time (torchrec 1.8, seen at 4 ranks).
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        config: TablesConfig,
        features: Sequence[str],
        *,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        self.features, self.pooling = list(features), config.pooling
        self.tables = EmbeddingBagCollection(bag_configs(specs, config), device=torch.device(device))

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Look up, pool, and put the features side by side: (B, F * dim)."""
        return _side_by_side(self.tables(features), features, self.features, self.pooling)


# A leaf to torchrec's pipelines, which trace the model down to its sharded tables: it counts keys.
@torch.fx.wrap
def _side_by_side(pooled: Any, features: KeyedJaggedTensor, names: Sequence[str], pooling: str) -> Tensor:
    """Return (B, F * dim): sums or means of bags, in the order of the names."""
    if isinstance(pooled, LazyAwaitable):
        pooled = pooled.wait()
    summed = KeyedTensor.regroup([pooled], [list(names)])[0]
    if pooling == "sum":
        return summed
    # Lengths stand in the order of the batch's keys, sums in that of the names.
    order = [features.keys().index(name) for name in names]
    # Where there are no ids the sum is zeros: divided by 1 it stays so.
    lengths = features.lengths().view(len(features.keys()), -1)[order].clamp(min=1)
    return (summed.unflatten(1, (len(order), -1)) / lengths.T.unsqueeze(2)).flatten(1)


def keyed_jagged(keys: Sequence[str], values: Tensor, lengths: Tensor) -> KeyedJaggedTensor:
    """Return torchrec's batch of ids.

    Args:
        keys: F feature names.
        values: (sum of lengths,) int64, feature after feature.
        lengths: (F * B,) int32, feature after feature.
    """
    return KeyedJaggedTensor(keys=list(keys), values=values, lengths=lengths)
