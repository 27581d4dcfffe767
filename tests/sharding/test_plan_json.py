import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharding_spec import ChunkShardingSpec, EnumerableShardingSpec
from torchrec.distributed.types import (
    BoundsCheckMode,
    CacheAlgorithm,
    CacheParams,
    EmbeddingModuleShardingPlan,
    KeyValueParams,
    ParameterSharding,
    ShardingPlan,
)
from torchrec.modules.embedding_configs import DataType

from trec_semid.core.errors import PlanError
from trec_semid.sharding.plan_json import decode_plan, encode_plan

SPECS = st.none() | st.lists(st.integers(1, 9), min_size=1, max_size=4).map(
    lambda rows: EnumerableShardingSpec(
        [
            ShardMetadata([sum(rows[:rank]), 0], [count, 8], f"rank:{rank}/cuda:{rank % 2}")
            for rank, count in enumerate(rows)
        ]
    )
)
CACHES = st.none() | st.builds(
    CacheParams,
    algorithm=st.none() | st.sampled_from(CacheAlgorithm),
    load_factor=st.none() | st.floats(0.01, 1),
    reserved_memory=st.none() | st.floats(0, 100),
    precision=st.none() | st.sampled_from(DataType),
    prefetch_pipeline=st.none() | st.booleans(),
)
PLACEMENTS = st.builds(
    ParameterSharding,
    sharding_type=st.sampled_from(["row_wise", "table_wise", "data_parallel"]),
    compute_kernel=st.sampled_from(["fused", "dense"]),
    ranks=st.none() | st.lists(st.integers(0, 511), max_size=4),
    sharding_spec=SPECS,
    cache_params=CACHES,
    enforce_hbm=st.none() | st.booleans(),
    stochastic_rounding=st.none() | st.booleans(),
    bounds_check_mode=st.none() | st.sampled_from(BoundsCheckMode),
    output_dtype=st.none() | st.sampled_from(DataType),
)


@given(
    st.dictionaries(
        st.text(max_size=5), st.dictionaries(st.text(max_size=5), PLACEMENTS, max_size=2), max_size=3
    )
)
def test_any_plan_comes_back_equal_through_json_text(modules: dict[str, dict[str, ParameterSharding]]):
    plan = ShardingPlan({path: EmbeddingModuleShardingPlan(tables) for path, tables in modules.items()})
    assert decode_plan(json.loads(json.dumps(encode_plan(plan)))) == plan


@pytest.mark.parametrize(
    ("placed", "text"),
    [
        (ParameterSharding("row_wise", "key_value", key_value_params=KeyValueParams()), "'key_value_params'"),
        (
            ParameterSharding("row_wise", "fused", sharding_spec=ChunkShardingSpec(0, ["rank:0/cpu"])),
            "ChunkSharding",
        ),
    ],
)
def test_what_has_no_json_form_is_refused_by_name(placed: ParameterSharding, text: str):
    plan = ShardingPlan({"bags": EmbeddingModuleShardingPlan({"t_item": placed})})
    with pytest.raises(PlanError, match=f"table 't_item': .*{text}"):
        encode_plan(plan)
