"""The space tokenizers work in: unit-length modality vectors, centred and scaled, side by side.

Legend: B items, M modalities, D = sum of the modalities' widths.
"""

from collections.abc import Mapping
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from trec_semid.core.arrays import Ints
from trec_semid.core.errors import DataError, ShapeError
from trec_semid.layers.unit_length import direction_tolerance, off_line, unit_length
from trec_semid.runtime.logs import working
from trec_semid.tokenizers.inputs.contents import Contents, ItemContents
from trec_semid.tokenizers.inputs.shards import (
    largest_over_ranks,
    my_rank,
    my_share,
    refusing_together,
    sum_over_ranks,
)

RECONSTRUCTION_CONVENTION = (
    "mean over items of ||e - e_hat||^2, e = the item's present modality vectors, each at unit length, "
    "side by side; missing modalities are left out of the sum; one modality's own error is the mean over "
    "the items that have it"
)
"""How reconstruction is measured, for every tokenizer alike."""
_SMALLEST_STD = 1e-4
"""Dimensions that vary less are constant in half precision: they are centred but not blown up."""
_CHUNK_ROWS = 8192


@final
class Standardiser(nn.Module):
    """e = [v_1/|v_1|, v_2/|v_2|, ...], x = (e - mean) / std, and x = 0 where a modality is missing.

    Mean and standard deviation are those of the items that have the modality. The zero is the neutral
    value: nothing is known, so the average is assumed. Unless `scaled`, std is 1, and x is e centred.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dims: Mapping[str, int], *, scaled: bool = True) -> None:
        super().__init__()
        self.scaled = scaled
        self.names, self.dims = tuple(dims), tuple(dims.values())
        self.register_buffer("mean", torch.zeros(sum(self.dims)))
        self.register_buffer("std", torch.ones(sum(self.dims)))

    def unit(self, contents: Contents) -> Tensor:
        """Return e (B, D): the convention's vectors; zeros where a modality is missing."""
        sizes = tuple(part.shape[1] for part in contents.vectors)
        if sizes != self.dims:
            expected = ", ".join(f"{name} = {dim}" for name, dim in zip(self.names, self.dims, strict=True))
            raise ShapeError(f"contents: wrong widths (got {sizes}, expected {expected}).")
        return torch.cat([unit_length(part) for part in contents.vectors], dim=1)

    def forward(self, contents: Contents) -> Tensor:
        """Return x (B, D)."""
        x = (self.unit(contents) - self.mean) / self.std
        return torch.where(self.spread(contents.present), x, 0.0)

    def modality(self, name: str, vectors: Tensor, present: Tensor) -> Tensor:
        """Return one modality's columns of x (B, dim) from its vectors (B, dim) and presence (B,)."""
        columns = self.columns(name)
        x = (unit_length(vectors) - self.mean[columns]) / self.std[columns]
        return torch.where(present.unsqueeze(1), x, 0.0)

    def columns(self, name: str) -> slice:
        """Return where a modality lies in x."""
        place = self.names.index(name)
        return slice(sum(self.dims[:place]), sum(self.dims[: place + 1]))

    def spread(self, per_modality: Tensor) -> Tensor:
        """Return (B, D): each modality's value in (B, M) repeated over its dimensions."""
        parts = per_modality.split(1, dim=1)
        return torch.cat([part.expand(-1, dim) for part, dim in zip(parts, self.dims, strict=True)], dim=1)

    def errors(self, x: Tensor, rebuilt: Tensor, present: Tensor) -> Tensor:
        """Return (B, M): ||e_m - e_hat_m||^2 of each modality, 0 where it is missing.

        Args:
            x: (B, D) standardised content.
            rebuilt: (B, D) its reconstruction, standardised as well.
            present: (B, M) bool.
        """
        squares = ((x - rebuilt) * self.std).square()  # e - e_hat = std (x - x_hat)
        per_modality = torch.stack([part.sum(1) for part in squares.split(self.dims, dim=1)], dim=1)
        return torch.where(present, per_modality, 0.0)

    def cosines(self, x: Tensor, rebuilt: Tensor, present: Tensor) -> Tensor:
        """Return (B,): cos(e, e_hat) over the modalities that are there; 0 where none is.

        Args:
            x: (B, D) standardised content.
            rebuilt: (B, D) its reconstruction, standardised as well.
            present: (B, M) bool.
        """
        here = self.spread(present)
        e, e_hat = (torch.where(here, values * self.std + self.mean, 0.0) for values in (x, rebuilt))
        return torch.cosine_similarity(e, e_hat, dim=1)

    @torch.no_grad()
    def fit(self, catalogue: ItemContents, rows: Ints) -> None:
        """Measure mean and standard deviation over (n,) items; every rank reads its share.

        Raises:
            DataError: on every rank: content that cannot be used, see `ItemContents.batch`, or a modality
                whose vectors are multiples of one, and tell no items apart.
        """
        sums = torch.zeros(3, len(self.mean), dtype=torch.float64)
        spread, mine = torch.zeros(len(self.dims)), my_share(rows)
        with (
            refusing_together(),
            working("standardise content", len(mine), shown=my_rank() == 0) as work,
        ):
            firsts = self._firsts(catalogue, rows)
            for chunk, contents in catalogue.chunks(mine, _CHUNK_ROWS):
                units = self.unit(contents)  # rows that are missing are zeros and add nothing
                exact = units.double()
                sums += torch.stack(
                    [exact.sum(0), exact.square().sum(0), self.spread(contents.present).sum(0)]
                )
                spread = torch.maximum(spread, self._off_lines(units, firsts, contents.present))
                work.advance(len(chunk))
        sums = sum_over_ranks(sums.to(self.mean.device))
        self._expect_directions(catalogue, rows, largest_over_ranks(spread.to(self.mean.device)))
        count = sums[2].clamp(min=1)
        mean = sums[0] / count
        self.mean.copy_(mean)
        if self.scaled:
            std = (sums[1] / count - mean.square()).clamp(min=0).sqrt()
            self.std.copy_(torch.where(std < _SMALLEST_STD, 1.0, std))

    def _firsts(self, catalogue: ItemContents, rows: Ints) -> list[Tensor]:
        """Return each modality's first unit vector (dim,) among these items, equal on all ranks."""
        owners = [rows[np.asarray(catalogue.present[name][rows], bool)][:1] for name in self.names]
        units = [self.unit(catalogue.batch(owner)) for owner in owners]
        parts = [unit[:, self.columns(name)] for unit, name in zip(units, self.names, strict=True)]
        return [part[0] if len(part) else part.new_zeros(part.shape[1]) for part in parts]

    def _off_lines(self, units: Tensor, firsts: list[Tensor], present: Tensor) -> Tensor:
        """Return (M,) how far the items of a chunk that have a modality lie off one line, at most."""
        parts = zip(units.split(self.dims, dim=1), firsts, present.unbind(1), strict=True)
        off = [off_line(part[has], first) for part, first, has in parts]
        return torch.stack([one.max() if len(one) else one.new_zeros(()) for one in off])

    def _expect_directions(self, catalogue: ItemContents, rows: Ints, spread: Tensor) -> None:
        for name, off in zip(self.names, spread.tolist(), strict=True):
            num_items = int(catalogue.present[name][rows].sum())
            is_half = catalogue.vectors[name].dtype == np.float16
            if num_items > 1 and off <= direction_tolerance(is_half=is_half):
                problem = (
                    f"content that tells no items apart: the vectors of all {num_items:,} items are "
                    "multiples of one, up to rounding, and only the direction of a vector counts"
                )
                remedy = (
                    'For numbers such as prices prepare content of kind = "attributes" with their columns '
                    "under numbers; else leave this modality out"
                )
                raise DataError(problem, field=name, remedy=remedy)
