"""Codes and reconstruction errors of a whole catalogue, chunk by chunk and over all ranks."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trec_semid.core.arrays import Array, Float32s, Int32s
from trec_semid.runtime.logs import working
from trec_semid.tokenizers.inputs.contents import Contents, ItemContents
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
    cosines: Float32s
    """(N,): cos(e, e_hat), 0 where an item has no content; (0,) where not asked for."""


@torch.no_grad()
def encode_catalogue(tokenizer: Tokenizer, catalogue: ItemContents, *, with_errors: bool = True) -> Encoded:
    """Encode and, where asked to, reconstruct every item; each rank does one stretch of the rows."""
    num_items, sizes = catalogue.num_items, tokenizer.codebook_sizes
    codes = torch.zeros(num_items, len(sizes), dtype=torch.int32)
    errors = torch.zeros(num_items if with_errors else 0, len(tokenizer.dims))
    cosines = torch.zeros(len(errors))
    mine = np.array_split(np.arange(num_items), world_size())[my_rank()]
    chunk_rows = _chunk_rows(tokenizer)
    with refusing_together(), working("encode items", len(mine), shown=my_rank() == 0) as work:
        for rows, read in catalogue.chunks(mine, chunk_rows):
            contents = read.to(tokenizer.device)
            chosen = tokenizer.encode(contents)
            at = slice(int(rows[0]), int(rows[-1]) + 1)
            codes[at] = chosen.int().cpu()
            if with_errors:
                of_chunk = measure(tokenizer, contents, chosen)
                errors[at], cosines[at] = of_chunk.errors.cpu(), of_chunk.cosines.cpu()
            work.advance(len(rows))
    # Every rank filled its own stretch and left zeros elsewhere.
    if with_errors:
        errors, cosines = sum_over_ranks(errors), sum_over_ranks(cosines)
    return Encoded(sum_over_ranks(codes).numpy(), errors.numpy(), cosines.numpy())


class Measured(NamedTuple):
    """How near items are rebuilt from codes."""

    errors: Tensor
    """(B, M)."""
    cosines: Tensor
    """(B,)."""


def measure(tokenizer: Tokenizer, contents: Contents, codes: Tensor) -> Measured:
    """Rebuild B items from codes (B, R), and compare."""
    rebuilt, x = tokenizer.reconstruct(contents, codes), tokenizer.standardiser(contents)
    of, present = tokenizer.standardiser, contents.present
    return Measured(of.errors(x, rebuilt, present), of.cosines(x, rebuilt, present))


@torch.no_grad()
def coefficients_of(tokenizer: Tokenizer, catalogue: ItemContents, codes: Int32s) -> Array | None:
    """Return (N, R) what is stored beside the codes (N, R) of all items; None where codes say all."""
    if not tokenizer.coefficient_bits:
        return None
    parts = [
        tokenizer.coefficients(contents, torch.from_numpy(codes[rows]).long().to(tokenizer.device))
        for rows, contents in (
            (rows, read.to(tokenizer.device))
            for rows, read in catalogue.chunks(np.arange(catalogue.num_items), _chunk_rows(tokenizer))
        )
    ]
    return np.concatenate([part.cpu().numpy() for part in parts if part is not None])


def _chunk_rows(tokenizer: Tokenizer) -> int:
    widest = max(sum(tokenizer.codebook_sizes), sum(tokenizer.dims.values()))
    return max(1, _CHUNK_BYTES // (4 * widest))
