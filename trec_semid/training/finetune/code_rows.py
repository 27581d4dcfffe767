"""Rows of codes that start as the codewords that they stand for.

Legend: R positions, K codes of a codebook, E width of codewords, D width of rows.
"""

import torch
from torch import Tensor

from trec_semid.core.seeds import torch_generator
from trec_semid.models.live_codes import LiveCodes
from trec_semid.sharding.tables import find_tables, table_shards


def rows_like(codewords: Tensor, dim: int, *, std: float, seed: int) -> Tensor:
    """Return (K, D): codewords (K, E) less their mean, turned at random, with coordinates of this spread.

    Turning keeps distances where D >= E, and about keeps them where rows are narrower (Johnson and
    Lindenstrauss, 1984).

    Args:
        codewords: of one position.
        dim: D.
        std: of a coordinate.
        seed: of the turn.
    """
    generator = torch_generator(seed, "rows of codewords")
    wide = max(dim, codewords.shape[1])
    # The orthogonal factor of normal numbers is a random turn.
    turn = torch.linalg.qr(torch.randn(wide, wide, generator=generator)).Q[: codewords.shape[1], :dim]
    centred = (codewords - codewords.mean(0)).float().cpu() @ turn
    spread = centred.square().mean().sqrt()
    return centred * (std / spread.clamp(min=1e-12))


@torch.no_grad()
def start_from_codebooks(live: LiveCodes, *, std: float, seed: int) -> None:
    """Write rows like codewords into the parts of the tables of codes that lie on this rank.

    The row of the 'missing' code stays as it was drawn.

    Args:
        live: of a placed model, with its tokenizer.
        std: of a coordinate of a row.
        seed: of the run; the same turn on all ranks and in all positions, which may share a space.
    """
    assert live.tokenizer is not None, "there is one where it is tuned"
    weights = live.tables.state_dict()
    for table, codewords in zip(find_tables(live.tables), live.tokenizer.codebooks, strict=True):
        rows = rows_like(codewords.detach(), table.dim, std=std, seed=seed)
        for first_row, first_column, part in table_shards(weights[table.key]):
            own = rows[first_row : first_row + len(part), first_column : first_column + part.shape[1]]
            part[: len(own)].copy_(own)
