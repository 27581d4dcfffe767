"""The model that `trec-semid retrieve` trains, before any sharding."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trec_semid.core.seeds import seed_everything
from trec_semid.data.features import Feature
from trec_semid.embeddings.code_tables import CodeTable, CodeTables
from trec_semid.embeddings.collection import PooledTables
from trec_semid.models.content_mixture import MixtureSizes
from trec_semid.models.item_tokens import ItemTokens
from trec_semid.models.live_codes import LiveCodes
from trec_semid.models.retrieval_model import RetrieverWithLoss
from trec_semid.tokenizers.learned import LearnedTokenizer
from trec_semid.tokenizers.maps.compressed import CompressedItems
from trec_semid.training.finetune.tokenizer import load_learned
from trec_semid.training.ranking.setup import table_specs
from trec_semid.training.retrieval.inputs import RetrieveInputs
from trec_semid.training.retrieval.setup import RetrieveConfig


class RetrieverParts(NamedTuple):
    """What describes items."""

    features: tuple[Feature, ...]
    """ID and side fields."""
    content: dict[str, int]
    """Width of each modality that is projected."""
    codes: Tensor | None
    """(N, R) item -> code map; None where items have no codes."""
    codebook_sizes: tuple[int, ...]
    """Codes of each position."""
    num_items: int
    """N."""
    map_device: str = "cpu"
    """Where what a model keeps of every item is laid out: `meta` where it is only planned."""
    compressed: CompressedItems | None = None
    """Items as their codes rebuild them, where the method reads that."""


def parts_of(config: RetrieveConfig, inputs: RetrieveInputs) -> RetrieverParts:
    """Return what describes the items of a dataset."""
    modalities, ids = inputs.dataset.facts.modalities, inputs.semantic_ids
    content = {name: modalities[name].dim for name in config.item.content}
    num_items = inputs.dataset.facts.num_items
    if ids is None:
        return RetrieverParts(inputs.data.features, content, None, (), num_items)
    codes = torch.from_numpy(_small(ids.codes))
    return RetrieverParts(
        inputs.data.features, content, codes, ids.sizes, num_items, compressed=inputs.compressed
    )


def items_at_once(config: RetrieveConfig, num_items: int, world_size: int) -> int:
    """Return how many items a step of a rank lists, at most.

    Args:
        config: of the run.
        num_items: those that a loss over all items is over.
        world_size: number of ranks.
    """
    if config.lists_all:
        return num_items
    rows_of_rank = -(-config.train.batch_size // world_size)
    drawn = config.sampled.num_sampled if config.sampled else 0
    ahead = config.window if config.sequences.rows == "sliding" else 1
    named = min(config.sequences.max_len, config.num_in_full or config.sequences.max_len)
    places = 1 if config.sequences.rows == "sliding" else config.sequences.max_len
    soft = places * config.loss.teacher.top if config.loss.teacher else 0
    return min(num_items, rows_of_rank * (named + ahead + soft) + drawn)


def build_retriever(config: RetrieveConfig, inputs: RetrieveInputs, *, world_size: int) -> RetrieverWithLoss:
    """Return the unsharded model of a run, with the tokenizer in it where one learns; else as `build_model`.

    Raises:
        ConfigError: the tokenizer cannot learn in the loop.
    """
    tokenizer = load_learned(config.finetune, config.semantic_ids, inputs.semantic_ids)
    return build_model(config, parts_of(config, inputs), tokenizer, world_size=world_size)


def build_model(
    config: RetrieveConfig, parts: RetrieverParts, tokenizer: LearnedTokenizer | None, *, world_size: int
) -> RetrieverWithLoss:
    """Return the unsharded model: dense weights drawn from the seed, tables without memory (on `meta`)."""
    seed_everything(config.seed, "dense weights")
    features, dim = parts.features, config.tables.dim
    sparse = None
    if features:
        sparse = PooledTables(
            table_specs(features), config.tables, [one.name for one in features], device="meta"
        )
    live = None
    if parts.codes is not None:
        # As long as the longest codebook: extra codes and codes from elsewhere have sizes of their own.
        rows = max(parts.codebook_sizes) + 1
        tables = CodeTables(
            [CodeTable(f"t_code_{r}", rows) for r in range(len(parts.codebook_sizes))], dim, device="meta"
        )
        live = LiveCodes(tables, parts.codes, tokenizer, config.finetune)
    item, mixture = config.item, None
    if item.content_projection == "mixture":
        mixture = MixtureSizes(item.content_experts, item.content_hidden_dim)
    items = ItemTokens(
        sparse,
        parts.content,
        live,
        dim,
        content_std=config.tables.init_std,
        content_is_unit=item.content_is_unit,
        mixture=mixture,
        reads_codes=item.codes,
    )
    frame = config.frame._replace(
        num_items=parts.num_items, map_device=parts.map_device, compressed=parts.compressed
    )
    model = config.retriever.build(items, frame)
    anchors = None
    if config.finetune:
        anchors = {
            "reconstruction": config.finetune.reconstruction_weight,
            "auxiliary": config.finetune.auxiliary_weight,
        }
    return RetrieverWithLoss(model, world_size=world_size, anchor_weights=anchors)


def _small(codes: np.ndarray) -> np.ndarray:
    return codes.astype(np.int16 if codes.max(initial=0) < np.iinfo(np.int16).max else np.int32)
