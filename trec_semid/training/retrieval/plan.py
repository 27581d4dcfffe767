"""Where a retriever's tables, and the content that it projects or tunes with, would lie on a cluster."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trec_semid.core.errors import ConfigError, PlanError
from trec_semid.data.features import describe_item
from trec_semid.embeddings.content_tables import PREFIX, ContentTables
from trec_semid.search.catalogue import stretch_of
from trec_semid.sharding.plan import TablePlan, plan_tables
from trec_semid.sharding.topology import GIB, ClusterConfig
from trec_semid.tokenizers.maps.compressed import CompressedItems
from trec_semid.training.placement import NOTHING_KEPT
from trec_semid.training.planning.sizes import SizesConfig
from trec_semid.training.retrieval.build import RetrieverParts, build_model, items_at_once
from trec_semid.training.retrieval.inputs import expect_scorable
from trec_semid.training.retrieval.setup import RetrieveConfig


def plan_retriever(
    config: RetrieveConfig, sizes: SizesConfig, cluster: ClusterConfig
) -> dict[str, TablePlan]:
    """Plan the tables under '', content that is projected and content of a tuned tokenizer by their names.

    Raises:
        ConfigError: the model has no tables, the catalogue is too large for its loss, a size is not
            known, or a rule or a length names nothing.
        DataError: the dataset or the semantic IDs are needed and not there.
        PlanError: the tables, or the item vectors that items are listed with, do not fit the cluster.
    """
    if not config.learns:
        raise ConfigError(f"model.kind: '{config.model.kind}' has no tables to plan for.")
    dataset = sizes.dataset(config.dataset)
    num_negatives = sizes.negatives(config.loss.negatives, dataset)
    expect_scorable(config, num_negatives)
    parts = _parts(config, sizes)
    sizes.expect_lengths_of(parts.features)
    listed = items_at_once(config, num_negatives, cluster.world_size)
    model = build_model(config, parts, None, world_size=cluster.world_size)
    # Before the tables are placed: what every rank keeps of all items, as codes or interests.
    maps = sum(each.nbytes for each in model.buffers() if each.shape[:1] == (parts.num_items,))
    tables = plan_tables(
        model,
        cluster,
        config.sharding.part(PREFIX, is_inside=False),
        batch_size=listed,
        optimizer=config.optimizers.tables,
        mean_lengths=sizes.mean_lengths,
    )
    content_tables: dict[str, Mapping[str, int]] = {"content": parts.content} if parts.content else {}
    if config.finetune:
        content_tables["tokenizer-content"] = sizes.widths(dataset, "finetune")
    plans = {"": tables}
    for name, widths in content_tables.items():
        plans[name] = plan_tables(
            ContentTables(widths, dataset.facts.num_items, device="meta"),
            cluster,
            config.sharding.part(PREFIX, is_inside=True),
            batch_size=listed,
            optimizer=NOTHING_KEPT,
            mean_lengths=dict.fromkeys(widths, 1.0),
            beside=list(plans.values())[-1],
        )
    if config.loss.item_weight:
        stretch = stretch_of(0, cluster.world_size, dataset.facts.num_items)
        held = stretch.stop * config.tables.dim * 4
        _expect_listable(held, maps, list(plans.values())[-1], cluster)
    return plans


def _expect_listable(held: int, maps: int, last: TablePlan, cluster: ClusterConfig) -> None:
    """Refuse a stretch of item vectors [bytes] that a rank could not hold beside its tables, for lists.

    Args:
        held: bytes of the stretch.
        maps: bytes of the codes and interests of all items.
        last: what else is placed.
        cluster: where.
    """
    is_gpu = cluster.device == "cuda"
    planned = max(load.hbm_bytes if is_gpu else load.ddr_bytes for load in last.rank_loads())
    free = (last.cluster.hbm_bytes if is_gpu else last.cluster.ddr_bytes) - planned - maps
    if held > free:
        raise PlanError(
            f"items are listed by their vectors, a stretch of {held / GIB:.2f} GiB on every rank, and "
            f"tables leave {free / GIB:.2f} GiB on the fullest of '{cluster.name}' (codes and interests of "
            f"all items take {maps / GIB:.2f} GiB). Lower tables.dim, take devices with more memory, or "
            "predict codes (loss.item_weight = 0)."
        )


def _parts(config: RetrieveConfig, sizes: SizesConfig) -> RetrieverParts:
    dataset = sizes.dataset(config.dataset)
    features = (*describe_item(dataset, config.item.fields, has_id=config.item.id), *sizes.extra_features())
    content = sizes.widths(dataset, "item.content", config.item.content) if config.item.content else {}
    if config.semantic_ids is None:
        return RetrieverParts(features, content, None, (), dataset.facts.num_items, "meta")
    codebooks = sizes.codebooks(config.semantic_ids, dataset)
    codes = torch.empty(dataset.facts.num_items, len(codebooks), dtype=torch.int32, device="meta")
    compressed = _compressed(config, codes, codebooks) if config.retriever.reads_codebook else None
    return RetrieverParts(
        features, content, codes, codebooks, dataset.facts.num_items, "meta", compressed=compressed
    )


def _compressed(config: RetrieveConfig, codes: Tensor, codebooks: Sequence[int]) -> CompressedItems:
    """Return what every rank holds of (N, R) codes beside them: a coefficient of two bytes each, at most."""
    stored = torch.empty(codes.shape, dtype=torch.float16, device="meta")
    # Of the codebook, which has no row an item, no width has to be known.
    books = torch.empty(len(codebooks), max(codebooks), config.tables.dim, device="meta")
    return CompressedItems(books, stored, torch.empty(2, len(codebooks), device="meta"))
