"""A random sample of what a channel reads, for methods that cluster in memory."""

from typing import Any

import numpy as np
import torch

from trec_semid.core.seeds import numpy_generator
from trec_semid.tokenizers.contents import Catalogue, Rows
from trec_semid.tokenizers.fusion import Fusion
from trec_semid.tokenizers.standardise import Standardiser

_CHUNK_ROWS = 8192


@torch.no_grad()
def draw_inputs(
    standardiser: Standardiser,
    fusion: Fusion,
    channel: int,
    catalogue: Catalogue,
    rows: Rows,
    *,
    size: int,
    seed: int,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a channel's inputs (n, dim) of at most `size` items that have what it reads, in row order."""
    rows = fusion.rows_of(fusion.channels[channel], catalogue, rows)
    drawn = np.sort(
        numpy_generator(seed, "kmeans items").choice(rows, size=min(len(rows), size), replace=False)
    )
    parts = [
        fusion(standardiser(contents), contents.present)[channel].cpu()
        for contents in (
            read.to(standardiser.mean.device) for _, read in catalogue.chunks(drawn, _CHUNK_ROWS)
        )
    ]
    return torch.cat(parts).numpy()
