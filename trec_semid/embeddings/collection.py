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
        self.features = list(features)
        self.tables = EmbeddingBagCollection(bag_configs(specs, config), device=torch.device(device))

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Look up, pool, and put the features side by side: (B, F * dim)."""
        pooled: Any = self.tables(features)
        if isinstance(pooled, LazyAwaitable):
            pooled = pooled.wait()
        return KeyedTensor.regroup([pooled], [self.features])[0]


def keyed_jagged(keys: Sequence[str], values: Tensor, lengths: Tensor) -> KeyedJaggedTensor:
    """Return torchrec's batch of ids.

    Args:
        keys: F feature names.
        values: (sum of lengths,) int64, feature after feature.
        lengths: (F * B,) int32, feature after feature.
    """
    return KeyedJaggedTensor(keys=list(keys), values=values, lengths=lengths)
