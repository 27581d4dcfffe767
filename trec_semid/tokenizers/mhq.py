"""MHQ: content rotated into facets, each of which is quantised level by level.

Legend: B items, d content width, D projected width, M facets of S = D / M dimensions, L levels,
R = M L positions (facet 0's levels first), K codes.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, final

import torch
from pydantic import PositiveInt
from torch import Tensor

from trec_semid.core.arrays import Ints
from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError
from trec_semid.layers.quantize import pick_codewords, squared_distances
from trec_semid.tokenizers.facet_fit import FacetFit, FacetFitConfig, quantize_facets
from trec_semid.tokenizers.inputs.contents import Contents, ItemContents, require_items
from trec_semid.tokenizers.tokenizer import FitReport, Tokenizer


class MhqConfig(Config):
    """Facets with residual levels."""

    kind: Literal["mhq"] = "mhq"
    codebook_size: PositiveInt = 256
    facets: PositiveInt = 8
    """M subspaces of the projected content, with codes of their own."""
    levels: PositiveInt = 3
    """Codes of a facet, coarse to fine: an item has `facets` times as many."""
    dim: PositiveInt = 512
    """D, principal directions of the content that facets share out; at most its width, rounded down to a
    multiple of `facets`. The others are taken for the average."""
    is_whitened: bool = False
    """Whether these directions are brought to one variance first. Errors then count alike in all of them, and
    `reconstruction`, which measures content as it is, is worse."""
    fit: FacetFitConfig = FacetFitConfig()


@final
class Mhq(Tokenizer):
    """x~ = W x in M facets of S dimensions, each coded by L residual levels; x_hat = W^+ [z_1 .. z_M].

    z_m = sum_l C_m,l[i_m,l]. Fitted by `FacetFit`. Source: AsymRec, 2026, whose code is not public.
    Differs: W acts on the content's principal directions, so that a narrower x~ is of the widest ones. x is
    the reconstruction convention's vectors, centred; a missing modality is taken for the average.
    """

    codebooks: Tensor
    projection: Tensor
    """(d, D)."""
    back: Tensor
    """(D, d): its pseudo-inverse."""

    def __init__(self, config: MhqConfig, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims, scaled=False)
        self.mhq_config = config
        width, facets = sum(dims.values()), config.facets
        most = min(config.dim, width)
        dim = most // facets * facets
        if not dim:
            raise ConfigError(
                f"tokenizer.facets: {facets} facets share {most} dimensions. Set tokenizer.facets = {most} "
                f"or less, or, where the content is as wide, tokenizer.dim = {facets} or more."
            )
        self.register_buffer("projection", torch.eye(width, dim))
        self.register_buffer("back", torch.eye(dim, width))
        shape = (facets * config.levels, config.codebook_size, dim // facets)
        self.register_buffer("codebooks", torch.zeros(shape))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K at every position."""
        return (self.mhq_config.codebook_size,) * self.codebooks.shape[0]

    @property
    def position_names(self) -> tuple[str, ...]:
        """`facet0_0`, `facet0_1`, ..., `facet1_0`, ...: facet after facet, each coarse to fine."""
        config = self.mhq_config
        return tuple(f"facet{m}_{level}" for m in range(config.facets) for level in range(config.levels))

    def fit(self, catalogue: ItemContents, rows: Ints, seed: int) -> Iterator[FitReport]:
        """Start from principal directions and clusters, then learn W and codebooks; of (n,) items."""
        config = self.mhq_config
        require_items(len(rows), config.codebook_size)
        self.standardiser.fit(catalogue, rows)
        work = FacetFit(self.standardiser, self.codebooks.shape, config.facets, config.fit, seed)
        for report in work.reports(catalogue, rows, is_whitened=config.is_whitened):
            # Whoever stops early has what was learnt so far.
            self.projection.copy_(work.projection)
            self.back.copy_(torch.linalg.pinv(work.projection))
            self.codebooks.copy_(work.codebooks)
            yield report

    @torch.no_grad()
    def encode(self, contents: Contents) -> Tensor:
        """Return the codes (B, R) int64."""
        return quantize_facets(self.project(contents), self.codebooks, self.mhq_config.facets).codes

    @torch.no_grad()
    def reconstruct(self, contents: Contents, codes: Tensor) -> Tensor:
        """Return x_hat (B, D)."""
        del contents
        return self._sums(codes).flatten(1) @ self.back

    @torch.no_grad()
    def distances(self, contents: Contents, codes: Tensor, position: int) -> Tensor:
        """Return (B, K): squared distances in the position's facet, the facet's other codes as they are."""
        facet = position // self.mhq_config.levels
        chosen = pick_codewords(self.codebooks, codes)
        others = self._sums(codes)[:, facet] - chosen[:, position]
        z = self.project(contents).unflatten(1, (self.mhq_config.facets, -1))[:, facet]
        return squared_distances(z - others, self.codebooks[position])

    def project(self, contents: Contents) -> Tensor:
        """Return x~ (B, D)."""
        return self.standardiser(contents) @ self.projection

    def _sums(self, codes: Tensor) -> Tensor:
        """Return (B, M, S): the sum of each facet's codewords."""
        chosen = pick_codewords(self.codebooks, codes)
        return chosen.unflatten(1, (self.mhq_config.facets, -1)).sum(2)
