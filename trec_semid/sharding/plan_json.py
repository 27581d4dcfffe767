"""torchrec's sharding plan as JSON and back, without loss."""

from collections.abc import Callable
from dataclasses import fields
from enum import Enum
from typing import Any

from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharding_spec.api import EnumerableShardingSpec
from torchrec.distributed.types import (
    BoundsCheckMode,
    CacheAlgorithm,
    CacheParams,
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
)
from torchrec.modules.embedding_configs import DataType

from trec_semid.core.errors import PlanError

Json = dict[str, Any]
_ENUMS: dict[str, type[Enum]] = {
    "bounds_check_mode": BoundsCheckMode,
    "output_dtype": DataType,
    "algorithm": CacheAlgorithm,
    "precision": DataType,
}
"""Fields of ParameterSharding and CacheParams that hold an enum member."""


def encode_plan(plan: ShardingPlan) -> Json:
    """Return a plan as module path -> table name -> placement.

    Raises:
        PlanError: the plan uses an option that has no JSON form here.
    """
    return {
        path: {name: encode_placement(placed, name) for name, placed in _tables(module).items()}
        for path, module in plan.plan.items()
    }


def decode_plan(content: Json) -> ShardingPlan:
    """Return the plan that `encode_plan` was given."""
    modules = {
        path: EmbeddingModuleShardingPlan({name: decode_placement(placed) for name, placed in tables.items()})
        for path, tables in content.items()
    }
    return ShardingPlan(dict(modules))


def encode_placement(placed: ParameterSharding, name: str) -> Json:
    """Return one table's placement; options left at None are left out."""
    return _encode(placed, name, {"sharding_spec": _encode_spec, "cache_params": _encode_cache})


def decode_placement(content: Json) -> ParameterSharding:
    """Return the placement that `encode_placement` was given."""
    return ParameterSharding(
        **_decode(content, {"sharding_spec": _decode_spec, "cache_params": _decode_cache})
    )


def _encode_cache(params: CacheParams, name: str) -> Json:
    return _encode(params, name, {})


def _decode_cache(content: Json) -> CacheParams:
    return CacheParams(**_decode(content, {}))


def _encode_spec(spec: Any, name: str) -> list[Json]:
    if not isinstance(spec, EnumerableShardingSpec):
        raise PlanError(f"table '{name}': cannot save a {type(spec).__name__} (expected enumerated shards).")
    return [
        {"offset": shard.shard_offsets, "size": shard.shard_sizes, "placement": str(shard.placement)}
        for shard in spec.shards
    ]


def _decode_spec(shards: list[Json]) -> EnumerableShardingSpec:
    return EnumerableShardingSpec(
        [ShardMetadata(shard["offset"], shard["size"], shard["placement"]) for shard in shards]
    )


def _encode(record: Any, name: str, nested: dict[str, Callable[[Any, str], Any]]) -> Json:
    content: Json = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if value is None:
            continue
        if field.name in nested:
            value = nested[field.name](value, name)
        elif isinstance(value, Enum):
            value = value.name
        elif not isinstance(value, (bool, int, float, str, list)):
            raise PlanError(f"table '{name}': option '{field.name}' cannot be saved as JSON (got {value!r}).")
        content[field.name] = value
    return content


def _decode(content: Json, nested: dict[str, Callable[[Any], Any]]) -> Json:
    decoded: Json = {}
    for key, value in content.items():
        if key in nested:
            decoded[key] = nested[key](value)
        else:
            decoded[key] = _ENUMS[key][value] if key in _ENUMS else value
    return decoded


def _tables(module: Any) -> dict[str, ParameterSharding]:
    return dict(module)
