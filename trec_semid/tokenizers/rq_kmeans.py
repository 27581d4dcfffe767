"""RQ-KMeans: each level clusters what the levels above left over.

Legend: B items, L levels (= positions R), K codes, D = sum of the modalities' widths.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, final

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from trec_semid.core.config import Config
from trec_semid.core.seeds import derive_seed, numpy_generator
from trec_semid.layers.kmeans import fit_kmeans
from trec_semid.layers.quantize import pick_codewords
from trec_semid.tokenizers.contents import Catalogue, Contents, Rows, require_items
from trec_semid.tokenizers.shards import copy_from, my_rank
from trec_semid.tokenizers.tokenizer import FitReport, Tokenizer

_CHUNK_ROWS = 8192


class RqKmeansConfig(Config):
    """Residual k-means over all modalities side by side."""

    kind: Literal["rq_kmeans"] = "rq_kmeans"
    codebook_size: PositiveInt = 100
    levels: PositiveInt = 6
    iterations: PositiveInt = 25
    """Lloyd steps of each level."""
    items_per_code: PositiveInt = 256
    """Clusters are fitted on at most so many items for each code, drawn at random."""


@final
class RqKmeans(Tokenizer):
    """r_1 = e - mean, c_l = argmin_j ||r_l - C_l,j||^2, r_{l+1} = r_l - C_l,c, e_hat = mean + sum_l C_l,c.

    Source: QARM, 2024, and OneRec, 2025 (theirs is balanced, this one is not). The vectors are those of
    the reconstruction convention, unit-length modalities side by side, so that each level lowers just
    the error that is reported. A missing modality is taken for the average. No gradients.
    """

    codebooks: Tensor

    def __init__(self, config: RqKmeansConfig, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims, scaled=False)
        self.rq_config = config
        self.register_buffer(
            "codebooks", torch.zeros(config.levels, config.codebook_size, sum(dims.values()))
        )

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K at every level."""
        return (self.rq_config.codebook_size,) * self.rq_config.levels

    @property
    def position_names(self) -> tuple[str, ...]:
        """`level_0`, `level_1`, ..., coarse to fine."""
        return tuple(f"level_{level}" for level in range(self.rq_config.levels))

    @torch.no_grad()
    def fit(self, catalogue: Catalogue, rows: Rows, seed: int) -> Iterator[FitReport]:
        """Cluster level by level on rank 0, which hands the centroids to the others."""
        config = self.rq_config
        require_items(len(rows), config.codebook_size)
        self.standardiser.fit(catalogue, rows)
        residuals = self._draw(catalogue, rows, seed) if my_rank() == 0 else None
        for level in range(config.levels):
            error = torch.zeros((), device=self.device)
            if residuals is not None:
                level_seed = derive_seed(seed, "level", level)
                clusters = fit_kmeans(
                    residuals, config.codebook_size, seed=level_seed, iterations=config.iterations
                )
                residuals -= clusters.centroids[clusters.codes]
                self.codebooks[level] = torch.from_numpy(clusters.centroids)
                error.fill_(float(np.square(residuals).sum(1).mean()))
            self.codebooks[level] = copy_from(0, self.codebooks[level])
            yield FitReport(level + 1, config.levels, {"residual": float(copy_from(0, error))})

    @torch.no_grad()
    def encode(self, contents: Contents) -> Tensor:
        """Return the codes (B, L) int64."""
        residual = self.standardiser(contents)
        codes: list[Tensor] = []
        for codebook in self.codebooks:
            # argmin ||r - C_j||^2 = argmax r . C_j - ||C_j||^2 / 2
            scores = torch.addmm(codebook.square().sum(1) / -2, residual, codebook.T)
            codes.append(scores.argmax(1))
            residual = residual - codebook[codes[-1]]
        return torch.stack(codes, dim=1)

    @torch.no_grad()
    def reconstruct(self, contents: Contents, codes: Tensor) -> Tensor:
        """Return x_hat (B, D), the sum of the chosen centroids."""
        return pick_codewords(self.codebooks, codes).sum(1)

    def _draw(self, catalogue: Catalogue, rows: Rows, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        size = min(len(rows), self.rq_config.codebook_size * self.rq_config.items_per_code)
        drawn = np.sort(numpy_generator(seed, "kmeans items").choice(rows, size=size, replace=False))
        parts = [
            self.standardiser(contents.to(self.device)).cpu()
            for _, contents in catalogue.chunks(drawn, _CHUNK_ROWS)
        ]
        return torch.cat(parts).numpy()
