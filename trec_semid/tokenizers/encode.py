"""Codes and reconstruction errors of a whole catalogue, chunk by chunk and over all ranks."""

from typing import NamedTuple

import numpy as np
import torch

from trec_semid.core.arrays import Float32s, Int32s
from trec_semid.runtime.logs import working
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.inputs.shards import my_rank, refusing_together, sum_over_ranks, world_size
from trec_semid.tokenizers.tokenizer import Tokenizer

_CHUNK_BYTES = 64 * 2**20
"""Bound on the scores (rows, R, K) and on the content (rows, D) of one chunk."""


class Encoded(NamedTuple):
    """Codes and errors of N items, in row order, on every rank."""

    codes: Int32s
    """(N, R)."""
    errors: Float32s
    """(N, M): ||e_m - e_hat_m||^2, 0 where the modality is missing; (0, M) where not asked for."""


@torch.no_grad()
def encode_catalogue(tokenizer: Tokenizer, catalogue: ItemContents, *, with_errors: bool = True) -> Encoded:
    """Encode and, where asked to, reconstruct every item; each rank does one stretch of the rows."""
    num_items, sizes = catalogue.num_items, tokenizer.codebook_sizes
    codes = torch.zeros(num_items, len(sizes), dtype=torch.int32)
    errors = torch.zeros(num_items if with_errors else 0, len(tokenizer.dims))
    mine = np.array_split(np.arange(num_items), world_size())[my_rank()]
    chunk_rows = max(1, _CHUNK_BYTES // (4 * max(sum(sizes), sum(tokenizer.dims.values()))))
    with refusing_together(), working("encode items", len(mine), shown=my_rank() == 0) as work:
        for rows, read in catalogue.chunks(mine, chunk_rows):
            contents = read.to(tokenizer.device)
            chosen = tokenizer.encode(contents)
            at = slice(int(rows[0]), int(rows[-1]) + 1)
            codes[at] = chosen.int().cpu()
            if with_errors:
                rebuilt = tokenizer.reconstruct(contents, chosen)
                x = tokenizer.standardiser(contents)
                errors[at] = tokenizer.standardiser.errors(x, rebuilt, contents.present).cpu()
            work.advance(len(rows))
    # Every rank filled its own stretch and left zeros elsewhere.
    of_all = sum_over_ranks(errors) if with_errors else errors
    return Encoded(sum_over_ranks(codes).numpy(), of_all.numpy())
