"""RQ-KMeans: each level clusters what the levels above left over.

Legend: B items, L levels (= positions R), K codes, D = sum of the modalities' widths.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, final

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from trec_semid.core.arrays import Float32s, Ints
from trec_semid.core.seeds import derive_seed
from trec_semid.layers.kmeans import fit_kmeans
from trec_semid.layers.quantize import pick_present, squared_distances
from trec_semid.layers.residual import residual_codes
from trec_semid.tokenizers.inputs.contents import Contents, ItemContents
from trec_semid.tokenizers.inputs.draw import draw_inputs
from trec_semid.tokenizers.inputs.fusion import Channel, Fusion, FusionConfig
from trec_semid.tokenizers.inputs.shards import copy_from, my_rank, refusing_together
from trec_semid.tokenizers.tokenizer import Additive, FitReport, Tokenizer


class RqKmeansConfig(FusionConfig):
    """Residual k-means."""

    kind: Literal["rq_kmeans"] = "rq_kmeans"
    codebook_size: PositiveInt = 100
    levels: PositiveInt = 6
    """Codes of an item; separated modalities share them out."""
    iterations: PositiveInt = 25
    """Lloyd steps of each level."""
    items_per_code: PositiveInt = 256
    """Clusters are fitted on at most so many items for each code, drawn at random."""


@final
class RqKmeans(Tokenizer):
    """r_1 = e - mean, c_l = argmin_j ||r_l - C_l,j||^2, r_{l+1} = r_l - C_l,c, e_hat = mean + sum_l C_l,c.

    Source: QARM, 2024, and OneRec, 2025 (theirs is balanced, this one is not). The vectors are those of
    the reconstruction convention, unit-length modalities side by side, so that each level lowers just
    the error that is reported. No gradients.
    """

    codebooks: Tensor

    def __init__(self, config: RqKmeansConfig, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims, scaled=False)
        self.rq_config = config
        self.fusion = Fusion(config, dims, config.levels, scaled=False)
        # Codewords of a narrower channel end in zeros.
        width = max(channel.dim for channel in self.fusion.channels)
        self.register_buffer("codebooks", torch.zeros(config.levels, config.codebook_size, width))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K at every level."""
        return (self.rq_config.codebook_size,) * self.rq_config.levels

    @property
    def position_names(self) -> tuple[str, ...]:
        """`level_0`, ... or, separated, `<modality>_0`, ..., each coarse to fine."""
        return self.fusion.position_names("level")

    @torch.no_grad()
    def fit(self, catalogue: ItemContents, rows: Ints, seed: int) -> Iterator[FitReport]:
        """Cluster (n,) items level by level on rank 0, which hands the centroids to the others."""
        config = self.rq_config
        self.standardiser.fit(catalogue, rows)
        self.fusion.fit(self.standardiser, catalogue, rows, seed, config.codebook_size)
        for index, channel in enumerate(self.fusion.channels):
            with refusing_together():
                residuals = self._draw(index, catalogue, rows, seed) if my_rank() == 0 else None
            for position in range(channel.positions.start, channel.positions.stop):
                # Rank 0 alone clusters, but every rank passes here: copies and reports are as many on each.
                error = torch.zeros((), device=self.device)
                if residuals is not None:
                    level_seed = derive_seed(seed, "level", position)
                    clusters = fit_kmeans(
                        residuals, config.codebook_size, seed=level_seed, iterations=config.iterations
                    )
                    residuals -= clusters.centroids[clusters.codes]
                    self.codebooks[position, :, : channel.dim] = torch.from_numpy(clusters.centroids)
                    error.fill_(float(np.square(residuals).sum(1).mean()))
                self.codebooks[position] = copy_from(0, self.codebooks[position])
                yield FitReport(position + 1, config.levels, {"residual": float(copy_from(0, error))})

    @torch.no_grad()
    def encode(self, contents: Contents) -> Tensor:
        """Return the codes (B, L) int64."""
        inputs = self.fusion(self.standardiser(contents), contents.present)
        codes = [
            residual_codes(part, self._codebooks(channel))
            for part, channel in zip(inputs, self.fusion.channels, strict=True)
        ]
        present = self.fusion.at_positions(contents.present)
        return torch.where(present, torch.cat(codes, dim=1), self.rq_config.codebook_size)

    @torch.no_grad()
    def reconstruct(self, contents: Contents, codes: Tensor) -> Tensor:
        """Return x_hat (B, D) of the sums of the chosen centroids."""
        sums = [self._codewords(channel, codes).sum(1) for channel in self.fusion.channels]
        return self.fusion.rebuild(sums)

    @torch.no_grad()
    def distances(self, contents: Contents, codes: Tensor, position: int) -> Tensor:
        """Return (B, K): squared distances of the channel's input, its other codes as they are."""
        inputs = self.fusion(self.standardiser(contents), contents.present)
        index = next(i for i, c in enumerate(self.fusion.channels) if position < c.positions.stop)
        channel = self.fusion.channels[index]
        chosen, level = self._codewords(channel, codes), position - channel.positions.start
        left = inputs[index] - (chosen.sum(1) - chosen[:, level])
        return squared_distances(left, self._codebooks(channel)[level])

    def additive(self) -> Additive:
        """Return the centroids, each in its channel's part of the width."""
        return Additive(self.fusion.side_by_side([self._codebooks(c) for c in self.fusion.channels]), None)

    def _codebooks(self, channel: Channel) -> Tensor:
        return self.codebooks[channel.positions, :, : channel.dim]

    def _codewords(self, channel: Channel, codes: Tensor) -> Tensor:
        """Return (B, R_g, dim), zeros where a code is 'missing'."""
        return pick_present(self._codebooks(channel), codes[:, channel.positions])

    def _draw(self, index: int, catalogue: ItemContents, rows: Ints, seed: int) -> Float32s:
        size = self.rq_config.codebook_size * self.rq_config.items_per_code
        return draw_inputs(self.standardiser, self.fusion, index, catalogue, rows, size=size, seed=seed)
