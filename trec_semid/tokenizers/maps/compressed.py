"""What a long history holds of items, codes and what is stored beside them, and the codebook that reads both.

Legend: N items, R positions, K codes, E width of what codes stand for.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trec_semid.core.errors import ConfigError
from trec_semid.core.paths import join, parent_of
from trec_semid.tokenizers.maps.coefficients import FILE as COEFFICIENTS
from trec_semid.tokenizers.maps.coefficients import Coefficients
from trec_semid.tokenizers.maps.record import TOKENIZER
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds, semantic_ids_file
from trec_semid.tokenizers.methods import load_tokenizer


class CompressedItems(NamedTuple):
    """An item is sum_r a_r C_r[c_r], and 'missing' codes add nothing."""

    codewords: Tensor
    """(R, K, E) float32."""
    stored: Tensor | None
    """(N, R) float16 or uint8 beside the codes, in row order; None where codes say all, and a_r is 1."""
    grid: Tensor | None
    """(2, R): a_r = grid[0, r] + stored * grid[1, r]; None where nothing is stored."""


def read_compressed(place: str, ids: SemanticIds) -> CompressedItems:
    """Read the codebook of a finished tokenize run, and what it stored beside the codes of some items.

    Args:
        place: run folder of `trec-semid tokenize`, or a bundle; what `semantic_ids` of a config names.
        ids: codes read there, in the order in which coefficients are to come.

    Raises:
        ConfigError: a file without a tokenizer, or one whose codes do not add up to what they stand for.
        DataError: files are missing or damaged, or an item has no coefficients.
    """
    folder = parent_of(semantic_ids_file(place))
    if place.endswith(".parquet"):
        raise ConfigError(
            f"semantic_ids: {place} is a file, which has no codebook to read codes by: name the run folder "
            "of trec-semid tokenize, or set model.light_reads = 'rows'."
        )
    tokenizer = load_tokenizer(join(folder, TOKENIZER))
    additive = tokenizer.additive()
    if additive is None:
        kind = tokenizer.config.model_dump()["kind"]
        raise ConfigError(
            f"semantic_ids: codes of '{kind}' in {place} do not add up to what they stand for: tokenize with "
            "cosine_rq, rq_kmeans or opq, or set model.light_reads = 'rows'."
        )
    if ids.sizes != tokenizer.codebook_sizes:
        is_slotted = ids.generation and ids.generation.collisions == "slots"
        without = "publish without --slots a run of" if is_slotted else "tokenize with"
        raise ConfigError(
            f"semantic_ids: {place} has codes of sizes {ids.sizes}, its codebook {tokenizer.codebook_sizes}: "
            f"{without} collisions = 'keep' or 'next_nearest', or set model.light_reads = 'rows'."
        )
    if not tokenizer.coefficient_bits:
        return CompressedItems(additive.codewords, None, None)
    stored = Coefficients.load(join(folder, COEFFICIENTS), ids.item_ids).values
    return CompressedItems(additive.codewords, torch.from_numpy(stored.copy()), additive.grid)
