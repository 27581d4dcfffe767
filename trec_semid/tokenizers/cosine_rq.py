"""Cosine residual codebook: each level takes away the direction that is nearest to what is left over.

Legend: B items, L levels (= positions R), K codes, D = sum of the modalities' widths.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, final

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import normalize

from trec_semid.core.arrays import Float32s, Ints
from trec_semid.core.seeds import derive_seed
from trec_semid.layers.kmeans import fit_balanced_kmeans
from trec_semid.layers.quantize import pick_present
from trec_semid.layers.residual import project_levels
from trec_semid.tokenizers.inputs.contents import Contents, ItemContents
from trec_semid.tokenizers.inputs.draw import draw_inputs
from trec_semid.tokenizers.inputs.fusion import Channel, Fusion, FusionConfig
from trec_semid.tokenizers.inputs.shards import copy_from, my_rank, refusing_together, sum_over_ranks
from trec_semid.tokenizers.tokenizer import Additive, FitReport, Moved, Tokenizer

_BITS = {"none": 0, "float16": 16, "uint8": 8, "uint4": 4}


class CosineRqConfig(FusionConfig):
    """Residual codebooks of directions."""

    kind: Literal["cosine_rq"] = "cosine_rq"
    codebook_size: PositiveInt = 256
    levels: PositiveInt = 4
    """Codes of an item; separated modalities share them out."""
    slack: float = Field(default=0.1, ge=0)
    """No cluster is fitted with more than (1 + slack) times its share of the items; `inf` bounds nothing."""
    coefficients: Literal["none", "float16", "uint8", "uint4"] = "float16"
    """How far an item lies along the direction of each of its codes, as it is stored beside the codes;
    `none`: nothing is stored, and the mean over a code's items is taken for it."""
    max_drift: float = Field(default=0.1, ge=0, le=2)
    """How far `update` may move a direction from where it was fitted: the length between unit vectors."""
    iterations: PositiveInt = 25
    """Lloyd steps of each level before clusters are balanced."""
    items_per_code: PositiveInt = 256
    """Clusters are fitted on at most so many items for each code, drawn at random."""


@final
class CosineRq(Tokenizer):
    """b_l = argmax_j cos(r_l, C_l,j), a_l = r_l . c, r_{l+1} = r_l - a_l c; r_1 = e - mean, c = C_l[b_l].

    Directions c are of unit length; e_hat = mean + sum_l a_l C_l[b_l].
    Source: HyMiRec, 2025, its cosine-similarity residual codebook, whose
    levels are clustered by balanced k-means; what it decodes with is not published. Here a_l is stored beside
    the codes, or the mean of a code's items stands for it. No gradients.
    """

    codebooks: Tensor
    fitted: Tensor
    """Codebooks as they were fitted, which `update` does not move."""
    means: Tensor
    """(L, K): mean coefficient of each code's items."""
    grid: Tensor
    """(2, L): smallest coefficient of each level, and the step between two that are stored."""

    def __init__(self, config: CosineRqConfig, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims, scaled=False)
        self.rq_config = config
        self.fusion = Fusion(config, dims, config.levels, scaled=False)
        # Directions of a narrower channel end in zeros.
        width = max(channel.dim for channel in self.fusion.channels)
        shape = (config.levels, config.codebook_size)
        for name in ("codebooks", "fitted"):
            self.register_buffer(name, torch.zeros(*shape, width))
        self.register_buffer("means", torch.zeros(shape))
        self.register_buffer("grid", torch.stack([torch.zeros(config.levels), torch.ones(config.levels)]))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K at every level."""
        return (self.rq_config.codebook_size,) * self.rq_config.levels

    @property
    def position_names(self) -> tuple[str, ...]:
        """`level_0`, ... or, separated, `<modality>_0`, ..., each coarse to fine."""
        return self.fusion.position_names("level")

    @property
    def coefficient_bits(self) -> int:
        """Bits of each stored coefficient; 0 where none are."""
        return _BITS[self.rq_config.coefficients]

    @torch.no_grad()
    def fit(self, catalogue: ItemContents, rows: Ints, seed: int) -> Iterator[FitReport]:
        """Cluster (n,) items level by level on rank 0, which hands the directions to the others."""
        self.standardiser.fit(catalogue, rows)
        self.fusion.fit(self.standardiser, catalogue, rows, seed, self.rq_config.codebook_size)
        for index, channel in enumerate(self.fusion.channels):
            with refusing_together():
                left = self._draw(index, catalogue, rows, seed) if my_rank() == 0 else None
            for position in range(channel.positions.start, channel.positions.stop):
                # Rank 0 alone clusters, but every rank passes here: copies and reports are as many on each.
                measured = torch.zeros(2, device=self.device)
                if left is not None:
                    left, largest = self._fit_level(
                        channel, position, left, derive_seed(seed, "level", position)
                    )
                    measured = torch.tensor([float(left.square().sum(1).mean()), largest], device=self.device)
                for values in (self.codebooks, self.means):
                    values[position] = copy_from(0, values[position])
                self.grid[:, position] = copy_from(0, self.grid[:, position])
                residual, largest = copy_from(0, measured).tolist()
                scalars = {"residual": residual, "largest_cluster_share": largest}
                yield FitReport(position + 1, self.rq_config.levels, scalars)
        self.fitted.copy_(self.codebooks)

    @torch.no_grad()
    def encode(self, contents: Contents) -> Tensor:
        """Return the codes (B, L) int64."""
        parts = zip(self._inputs(contents), self.fusion.channels, strict=True)
        codes = [project_levels(part, self._codebooks(channel)).codes for part, channel in parts]
        present = self.fusion.at_positions(contents.present)
        return torch.where(present, torch.cat(codes, dim=1), self.rq_config.codebook_size)

    @torch.no_grad()
    def coefficients(self, contents: Contents, codes: Tensor) -> Tensor | None:
        """Return (B, L) what is stored beside codes (B, L): float16, or uint8 steps of the level's grid.

        A missing modality's are 0.
        """
        return self._stored(self._along(contents, codes), codes)

    @torch.no_grad()
    def decode(self, codes: Tensor, coefficients: Tensor | None) -> Tensor:
        """Return x_hat (B, D) of codes (B, L) and of what is stored beside them (B, L)."""
        return self._decoded(codes, self._restored(codes, coefficients))

    def _decoded(self, codes: Tensor, along: Tensor) -> Tensor:
        sums = [
            (self._directions(c, codes) * along[:, c.positions, None]).sum(1) for c in self.fusion.channels
        ]
        return self.fusion.rebuild(sums)

    def additive(self) -> Additive:
        """Return the directions, each in its channel's part of the width, as long as a coefficient says.

        Where none are stored, directions are as long as the mean over their items.
        """
        codewords = self.fusion.side_by_side([self._codebooks(c) for c in self.fusion.channels])
        match self.rq_config.coefficients:
            case "none":
                return Additive(codewords * self.means.unsqueeze(2), None)
            case "float16":
                return Additive(codewords, torch.stack([self.grid[0] * 0, torch.ones_like(self.grid[1])]))
            case _:
                return Additive(codewords, self.grid.clone())

    @torch.no_grad()
    def reconstruct(self, contents: Contents, codes: Tensor) -> Tensor:
        """Return x_hat (B, D), decoded with the coefficients that the content has for these codes."""
        return self.decode(codes, self.coefficients(contents, codes))

    @torch.no_grad()
    def reconstruct_from_codes(self, contents: Contents, codes: Tensor) -> Tensor:
        """Return x_hat (B, D), decoded with the mean coefficient of each code's items."""
        del contents
        return self._decoded(codes, self._mean_coefficients(codes))

    @torch.no_grad()
    def distances(self, contents: Contents, codes: Tensor, position: int) -> Tensor:
        """Return (B, K): minus the squared length of what other codes leave, along each code of a position.

        That is the squared error with the best coefficient, but for a constant; directions that point away
        come last.
        """
        index = next(i for i, c in enumerate(self.fusion.channels) if position < c.positions.stop)
        channel, along = self.fusion.channels[index], self._along(contents, codes)
        parts = self._directions(channel, codes) * along[:, channel.positions, None]
        level = position - channel.positions.start
        left = self._inputs(contents)[index] - (parts.sum(1) - parts[:, level])
        scores = left @ self._codebooks(channel)[level].T
        return -scores * scores.abs()

    @torch.no_grad()
    def update(self, contents: Contents, rate: float) -> Moved:
        """Move each code's direction towards the mean direction of the new items that have the code.

        c <- (1 - rate) c + rate m, brought to unit length, and back to `max_drift` from where it was fitted
        where it would be farther. Stored codes and coefficients of an item therefore decode, however many
        updates come, at most max_drift * sum_l |a_l| <= max_drift * sqrt(L) |e - mean| from where they did
        (with the alignment of modalities that is learnt: before its way back).

        Args:
            contents: of new items, this rank's; all ranks call together.
            rate: 0 moves nothing, 1 forgets the old direction.
        """
        return self.move(sum_over_ranks(self.sums_for_update(contents)), rate)

    @torch.no_grad()
    def sums_for_update(self, contents: Contents) -> Tensor:
        """Return (L, K, D): sums of the directions of what is left of items at each level, by their codes.

        Those of several batches of new items add up to those of all of them, as long as nothing moves.

        Args:
            contents: of (B,) items.
        """
        sums = torch.zeros_like(self.codebooks)
        for index, channel in enumerate(self.fusion.channels):
            has = self.fusion.at_positions(contents.present)[:, channel.positions.start]
            left = self._inputs(contents)[index][has]
            for position in range(channel.positions.start, channel.positions.stop):
                book = self.codebooks[position, :, : channel.dim]
                projected = project_levels(left, book.unsqueeze(0))
                sums[position, :, : channel.dim].index_add_(0, projected.codes[:, 0], normalize(left, dim=1))
                left = projected.left
        return sums

    @torch.no_grad()
    def move(self, sums: Tensor, rate: float) -> Moved:
        """Move directions by sums (L, K, D) over all new items; see `update`."""
        before, means = self.codebooks.clone(), normalize(sums, dim=2)
        is_met = means.any(2, keepdim=True)
        moved = normalize(torch.where(is_met, torch.lerp(before, means, rate), before), dim=2)
        for level, fitted in enumerate(self.fitted):
            held = _held_near(moved[level], fitted, self.rq_config.max_drift)
            self.codebooks[level] = torch.where(is_met[level], held, before[level])
        apart = (self.codebooks - self.fitted).norm(dim=2)
        at_bound = apart >= self.rq_config.max_drift * (1 - 1e-3)
        return Moved(
            float(apart.max()),
            int((self.codebooks != before).any(2).sum()),
            int((at_bound & (apart > 0)).sum()),
        )

    def _fit_level(self, channel: Channel, position: int, left: Tensor, seed: int) -> tuple[Tensor, float]:
        """Fit a level to points (n, dim); return what is left over (n, dim), its largest cluster's share."""
        config = self.rq_config
        clusters = fit_balanced_kmeans(
            left.numpy(), config.codebook_size, seed=seed, slack=config.slack, iterations=config.iterations
        )
        book = torch.from_numpy(clusters.centroids)
        self.codebooks[position, :, : channel.dim] = book
        projected = project_levels(left, book.unsqueeze(0))
        codes, along = projected.codes[:, 0], projected.coefficients[:, 0]
        sums, counts = (
            torch.zeros(config.codebook_size).index_add_(0, codes, values)
            for values in (along, torch.ones_like(along))
        )
        # No item of the sample may have chosen a code: any that does later is taken for the average.
        self.means[position] = torch.where(counts > 0, sums / counts.clamp(min=1), along.mean())
        steps = max(2**self.coefficient_bits - 1, 1)
        low, high = along.aminmax()
        self.grid[:, position] = torch.stack([low, ((high - low) / steps).clamp(min=1e-12)])
        return projected.left, float(np.bincount(clusters.codes).max() / len(left))

    def _inputs(self, contents: Contents) -> tuple[Tensor, ...]:
        return self.fusion(self.standardiser(contents), contents.present)

    def _codebooks(self, channel: Channel) -> Tensor:
        return self.codebooks[channel.positions, :, : channel.dim]

    def _directions(self, channel: Channel, codes: Tensor) -> Tensor:
        """Return (B, R_g, dim), zeros where a code is 'missing'."""
        return pick_present(self._codebooks(channel), codes[:, channel.positions])

    def _along(self, contents: Contents, codes: Tensor) -> Tensor:
        """Return (B, L): the coefficients as they are."""
        chosen = codes.clamp(max=self.rq_config.codebook_size - 1)
        parts = zip(self._inputs(contents), self.fusion.channels, strict=True)
        return torch.cat(
            [
                project_levels(part, self._codebooks(c), chosen[:, c.positions]).coefficients
                for part, c in parts
            ],
            1,
        )

    def _stored(self, along: Tensor, codes: Tensor) -> Tensor | None:
        if self.rq_config.coefficients == "none":
            return None
        along = torch.where(codes < self.rq_config.codebook_size, along, 0.0)
        if self.rq_config.coefficients == "float16":
            return along.half()
        low, step = self.grid
        return ((along - low) / step).round().clamp(0, 2**self.coefficient_bits - 1).to(torch.uint8)

    def _restored(self, codes: Tensor, stored: Tensor | None) -> Tensor:
        """Return (B, L) float32 of what `_stored` made."""
        if stored is None:
            return self._mean_coefficients(codes)
        if self.rq_config.coefficients == "float16":
            return stored.float()
        low, step = self.grid
        return low + stored * step

    def _mean_coefficients(self, codes: Tensor) -> Tensor:
        """Return (B, L)."""
        return self.means.gather(1, codes.clamp(max=self.rq_config.codebook_size - 1).T).T

    def _draw(self, index: int, catalogue: ItemContents, rows: Ints, seed: int) -> Tensor:
        size = self.rq_config.codebook_size * self.rq_config.items_per_code
        drawn: Float32s = draw_inputs(
            self.standardiser, self.fusion, index, catalogue, rows, size=size, seed=seed
        )
        return torch.from_numpy(drawn)


def _held_near(moved: Tensor, fitted: Tensor, farthest: float) -> Tensor:
    """Return (K, D) unit vectors: `moved` (K, D), or as far towards it from `fitted` (K, D) as may be."""
    is_far = (moved - fitted).norm(dim=1, keepdim=True) > farthest
    # A chord of length h spans an angle of 2 asin(h / 2).
    angle = 2 * torch.asin(torch.tensor(farthest / 2))
    across = normalize(moved - (moved * fitted).sum(1, keepdim=True) * fitted, dim=1)
    return torch.where(is_far, fitted * angle.cos() + across * angle.sin(), moved)
