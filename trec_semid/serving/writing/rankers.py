"""Writes a ranker's program, and what it needs beside its tables.

Legend: F features, D table width.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from trec_semid.checkpoints.manifest import FeatureFacts, FileFacts, ProgramFacts, RankerFacts
from trec_semid.core.arrays import Array
from trec_semid.data.features import Feature, FeaturesConfig, Representation
from trec_semid.data.histories import HistoryConfig
from trec_semid.serving.writing.forms import Forms
from trec_semid.serving.writing.ids import write_arrays
from trec_semid.serving.writing.programs import write_program


class RankerParts(NamedTuple):
    """What of a ranker is written."""

    features: tuple[Feature, ...]
    representation: Representation
    features_config: FeaturesConfig
    history: HistoryConfig
    item_counts: Array
    """(N,) training events of each item."""
    pooling: str
    dim: int
    dense: nn.Module
    """(rows, F * D) to (rows,) logits."""
    of_requests: nn.Module | None
    """The same with what is of a request computed once (`DenseRanker.of_requests`); None for nothing."""


def write_ranker(folder: str, parts: RankerParts, forms: Forms) -> RankerFacts:
    """Write a ranker but for its tables.

    Args:
        folder: of the bundle.
        parts: of the model.
        forms: of its programs.
    """
    example = torch.zeros(2, len(parts.features) * parts.dim)
    rows = {0: torch.export.Dim("rows", min=1)}
    program = write_program(
        folder,
        "programs/score",
        parts.dense,
        [example],
        [rows],
        outputs=("logits",),
        forms=forms,
    )
    return RankerFacts.model_validate(
        {
            "representation": parts.representation,
            "features": tuple(FeatureFacts(**feature._asdict()) for feature in parts.features),
            "features_config": parts.features_config,
            "history": parts.history,
            "item_counts": _write_counts(folder, parts),
            "pooling": parts.pooling,
            "dim": parts.dim,
            "program": program,
            "of_requests": _of_requests(folder, parts, forms),
        }
    )


def _write_counts(folder: str, parts: RankerParts) -> FileFacts | None:
    if not parts.features_config.id_min_events:
        return None
    counts = np.asarray(parts.item_counts, np.int64)
    return write_arrays(folder, "items/counts.safetensors", {"counts": counts})


def _of_requests(folder: str, parts: RankerParts, forms: Forms) -> ProgramFacts | None:
    """Write the program that reads requests once."""
    if parts.of_requests is None:
        return None
    num_own = sum(feature.entity == "item" for feature in parts.features)
    num_shared = len(parts.features) - num_own
    # Requests and rows of different numbers, or torch would take them for the same.
    example = torch.zeros(2, num_shared * parts.dim), torch.zeros(3, num_own * parts.dim)
    rows = {0: torch.export.Dim("rows", min=2)}
    return write_program(
        folder,
        "programs/score-requests",
        parts.of_requests,
        [*example, torch.tensor([0, 1, 1])],
        [{0: torch.export.Dim("requests", min=2)}, rows, rows],
        outputs=("logits",),
        forms=forms,
    )
