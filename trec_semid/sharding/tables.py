"""The embedding tables of a model, sharded or not, and the sharders that may take them apart."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import get_unwrapped_module
from torchrec.distributed.types import ModuleSharder, QuantizedCommCodecs, ShardingType
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

Pooling = Literal["pooled", "sequence"]
COLUMN_TYPES = ("column_wise", "table_column_wise")
EVERY_TYPE = ("data_parallel", "table_wise", "row_wise", "table_row_wise", *COLUMN_TYPES)
"""What tables may be placed by, the simpler first: among equally fast placements the first wins.
grid_shard is left out: sharded by it, a collection does not equal its unsharded self."""
KERNELS = {"cpu": ("fused",), "cuda": ("fused", "fused_uvm", "fused_uvm_caching")}
"""Kernels of sharded tables, by device."""
REPLICATED_KERNEL = "dense"
"""Kernel of data_parallel tables, and of those only."""


class Table(NamedTuple):
    """One embedding table."""

    name: str
    module: str
    """Path of its collection inside the model."""
    key: str
    """Path of its weight inside the model's state dict."""
    pooling: Pooling
    rows: int
    dim: int
    features: tuple[str, ...]


def find_tables(model: nn.Module) -> list[Table]:
    """Return every table of every embedding collection inside the model, in the model's order."""
    return [table for path, module in collections(model) for table in _tables_of(path, module)]


def collections(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each embedding collection with its path, not looking inside it."""
    kinds = (
        EmbeddingBagCollection,
        EmbeddingCollection,
        ShardedEmbeddingBagCollection,
        ShardedEmbeddingCollection,
    )
    waiting: list[tuple[str, nn.Module]] = [("", get_unwrapped_module(model))]
    while waiting:
        path, module = waiting.pop(0)
        if isinstance(module, kinds):
            yield path, module
        else:
            inner = [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]
            waiting = inner + waiting


def table_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weight of every table of an unsharded model, by table name."""
    parameters = dict(model.named_parameters())
    return {table.name: parameters[table.key] for table in find_tables(model)}


def _tables_of(path: str, module: nn.Module) -> list[Table]:
    is_pooled = isinstance(module, (EmbeddingBagCollection, ShardedEmbeddingBagCollection))
    inner = "embedding_bags" if is_pooled else "embeddings"
    prefix = f"{path}." if path else ""
    return [
        Table(
            name=config.name,
            module=path,
            key=f"{prefix}{inner}.{config.name}.weight",
            pooling="pooled" if is_pooled else "sequence",
            rows=config.num_embeddings,
            dim=config.embedding_dim,
            features=tuple(config.feature_names),
        )
        for config in _configs_of(module)
    ]


def _configs_of(module: Any) -> list[BaseEmbeddingConfig]:
    if isinstance(module, EmbeddingBagCollection):
        return list(module.embedding_bag_configs())
    if isinstance(module, EmbeddingCollection):
        return list(module.embedding_configs())
    # Sharded collections keep their configs, but only under a private name.
    is_pooled = isinstance(module, ShardedEmbeddingBagCollection)
    return list(getattr(module, "_embedding_bag_configs" if is_pooled else "_embedding_configs"))


class PooledTableSharder(EmbeddingBagCollectionSharder):
    """Sharder that offers every exact sharding type on every device.

    The library hides the row-wise types on CPU although they work there.
    """

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return the types the planner may choose from."""
        return list(EVERY_TYPE)

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Return the kernels the planner may choose from."""
        return _kernels(sharding_type, compute_device_type)


class SequenceTableSharder(EmbeddingCollectionSharder):
    """Sharder that offers what works: on CPU a replicated sequence table is broken."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return the types the planner may choose from."""
        types: list[str] = super().sharding_types(compute_device_type)
        replicated = ShardingType.DATA_PARALLEL.value
        return [kind for kind in types if compute_device_type != "cpu" or kind != replicated]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Return the kernels the planner may choose from."""
        return _kernels(sharding_type, compute_device_type)


def _kernels(sharding_type: str, device: str) -> list[str]:
    replicated = sharding_type == ShardingType.DATA_PARALLEL.value
    return [REPLICATED_KERNEL] if replicated else list(KERNELS[device])


def table_sharders(codecs: dict[str, QuantizedCommCodecs] | None = None) -> list[ModuleSharder[Any]]:
    """Return the sharders that both the planner and the sharded model are given.

    Args:
        codecs: how values travel, by the name of the exchange; as they are where not given.
    """
    return [
        PooledTableSharder(qcomm_codecs_registry=codecs),
        SequenceTableSharder(qcomm_codecs_registry=codecs),
    ]


@contextmanager
def without_library_warnings() -> Iterator[None]:
    """Keep torchrec from logging a warning per replicated table and per table without a cache."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def offered_types(pooling: Pooling, device: str) -> list[str]:
    """Return the sharding types that a table may have on a device."""
    sharder = PooledTableSharder() if pooling == "pooled" else SequenceTableSharder()
    return sharder.sharding_types(device)


def table_shards(weight: Any) -> list[tuple[int, int, Tensor]]:
    """Return the parts (rows, D) of a state-dict value on this rank, each with its first row and column.

    State of an optimizer may have parts (rows,), whose first column is 0.
    """
    if not isinstance(weight, ShardedTensor):
        return [(0, 0, weight)]
    parts = ((shard.metadata.shard_offsets, shard.tensor) for shard in weight.local_shards())
    return [(offsets[0], offsets[1] if len(offsets) > 1 else 0, part) for offsets, part in parts]
