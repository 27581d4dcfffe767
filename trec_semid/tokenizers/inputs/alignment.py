"""Modalities projected into one space where those of an item lie together.

Legend: B items, N items, M modalities, D = sum of the modalities' widths, F width of the space.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import final

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import normalize

from trec_semid.core.arrays import Ints
from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError, DataError, TrainingError
from trec_semid.core.finite import first_not_finite
from trec_semid.core.seeds import numpy_generator, torch_generator
from trec_semid.layers.contrastive import info_nce
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.inputs.shards import copy_from, my_rank, refusing_together
from trec_semid.tokenizers.inputs.standardise import Standardiser

_MAP_BACK_ITEMS = 16_384
"""Items that the linear map back is regressed on, at most."""
_LEAST_MAP_BACK_ITEMS = 1024
"""Of these, items with a modality that make the sample do for it."""
_SMALLEST_STD = 1e-6


class ContrastiveConfig(Config):
    """How modalities are aligned."""

    dim: PositiveInt = 128
    """Width of the space."""
    temperature: PositiveFloat = 0.1
    epochs: PositiveInt = 20
    items: PositiveInt = 200_000
    """At most so many items are learnt from, drawn at random."""
    batch_size: PositiveInt = 256
    """Items that are told apart in a step."""
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-2
    ridge: PositiveFloat = 1e-3
    """Of the linear map back, as a share of the mean variance of the space."""


@final
class Alignment(nn.Module):
    """f = mean over present m of P_m x_m / |P_m x_m|, P learnt by InfoNCE; x_hat = W f + b by least squares.

    An item without one modality has the other one's place, which is what alignment is for; an item without
    any lies at the mean. The space is centred, and scaled where the content is. Weights are frozen.
    """

    projection: Tensor
    shift: Tensor
    scale: Tensor
    back: Tensor
    bias: Tensor

    def __init__(self, config: ContrastiveConfig, dims: Sequence[int], *, scaled: bool) -> None:
        super().__init__()
        if len(dims) < 2:
            raise ConfigError('alignment: "contrastive" needs two modalities. Use "concat".')
        self.config, self.dims, self.scaled = config, tuple(dims), scaled
        for name, shape in {
            "projection": (sum(dims), config.dim),
            "shift": (config.dim,),
            "back": (config.dim, sum(dims)),
            "bias": (sum(dims),),
        }.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("scale", torch.ones(config.dim))

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """Return f (B, F) of standardised content (B, D) with (B, M) presence."""
        f = (self._fuse(x, present, self.projection) - self.shift) / self.scale
        return torch.where(present.any(1, keepdim=True), f, 0.0)

    def rebuild(self, f: Tensor) -> Tensor:
        """Return x_hat (B, D)."""
        return f @ self.back + self.bias

    @torch.no_grad()
    def fit(self, standardiser: Standardiser, catalogue: ItemContents, rows: Ints, seed: int) -> None:
        """Learn the space from items `rows` (n,) on rank 0, which hands it to the others.

        Raises:
            DataError: no two items have two modalities in common.
            TrainingError: what was learnt is not finite.
        """
        pairs = np.sum([catalogue.present[name][rows] for name in catalogue.dims], axis=0) > 1
        if pairs.sum() < 2:
            raise DataError("contrastive alignment needs items with two modalities", value=int(pairs.sum()))
        with refusing_together():
            if my_rank() == 0:
                drawn = numpy_generator(seed, "alignment").permutation(rows[pairs])[: self.config.items]
                self.projection.copy_(self._learn(standardiser, catalogue, drawn, seed))
                self._expect_finite(len(drawn))
                self._fit_back(standardiser, catalogue, rows, seed)
        for values in self.buffers():
            values.copy_(copy_from(0, values))

    def _expect_finite(self, num_pairs: int) -> None:
        if first_not_finite([("projection", self.projection)]):
            steps = self.config.epochs * max(1, num_pairs // self.config.batch_size)
            problem = f"contrastive alignment: the projection is not finite after step {steps}"
            raise TrainingError(f"{problem}. Lower contrastive.learning_rate.")

    def _fuse(self, x: Tensor, present: Tensor, projection: Tensor) -> Tensor:
        sides = self._project(x, projection) * present.unsqueeze(2)
        return sides.sum(1) / present.sum(1, keepdim=True).clamp(min=1)

    def _project(self, x: Tensor, projection: Tensor) -> Tensor:
        """Return each modality's unit-length place (B, M, F)."""
        parts = zip(x.split(self.dims, dim=1), projection.split(self.dims), strict=True)
        return torch.stack([normalize(part @ weight, dim=1) for part, weight in parts], dim=1)

    def _learn(self, standardiser: Standardiser, catalogue: ItemContents, rows: Ints, seed: int) -> Tensor:
        config = self.config
        drawn = torch.randn(sum(self.dims), config.dim, generator=torch_generator(seed, "projection"))
        fan_in = torch.cat([torch.full((dim, 1), float(dim)) for dim in self.dims])
        projection = (drawn / fan_in.sqrt()).to(self.projection).requires_grad_()
        optimizer = torch.optim.AdamW(
            [projection], lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        for epoch in range(config.epochs):
            order = numpy_generator(seed, "alignment", epoch).permutation(rows)
            for batch in np.array_split(order, max(1, len(order) // config.batch_size)):
                contents = catalogue.batch(batch).to(projection.device)
                x = standardiser(contents)
                with torch.enable_grad():
                    loss = self._loss(self._project(x, projection), contents.present)
                    optimizer.zero_grad()
                    loss.backward()
                optimizer.step()
        return projection.detach()

    def _loss(self, sides: Tensor, present: Tensor) -> Tensor:
        losses = [sides.sum() * 0.0]
        for left, right in combinations(range(len(self.dims)), 2):
            both = present[:, left] & present[:, right]
            if both.sum() > 1:
                temperature = self.config.temperature
                losses.append(info_nce(sides[both, left], sides[both, right], temperature=temperature))
        return torch.stack(losses).sum()

    def _fit_back(self, standardiser: Standardiser, catalogue: ItemContents, rows: Ints, seed: int) -> None:
        """Centre the space, and regress each modality on it over the items that have the modality."""
        some = numpy_generator(seed, "map back").permutation(rows)[:_MAP_BACK_ITEMS]
        x, f, present = self._read(standardiser, catalogue, some)
        self.shift.copy_(f.mean(0))
        variance = f.var(0, correction=0)
        if self.scaled:
            self.scale.copy_(variance.clamp(min=_SMALLEST_STD**2).sqrt())
        ridge = self.config.ridge * variance.mean() * torch.eye(f.shape[1]).to(f)
        weights, biases = [], []
        for column, name in enumerate(catalogue.dims):
            own, num_some = (
                rows[np.asarray(catalogue.present[name][rows], bool)],
                int(present[:, column].sum()),
            )
            if num_some >= min(len(own), _LEAST_MAP_BACK_ITEMS):
                values, inside, has = x, f, present[:, column]
            else:  # a modality that few items have
                drawn = numpy_generator(seed, "map back of a modality").permutation(own)[:_MAP_BACK_ITEMS]
                values, inside, has = self._read(standardiser, catalogue, drawn)
                has = has[:, column]
            inside, values = inside[has], values.split(self.dims, dim=1)[column][has].double()
            mean, target = inside.mean(0), values.mean(0)
            centred = inside - mean
            weight = torch.linalg.solve(
                centred.T @ centred / len(inside) + ridge, centred.T @ (values - target) / len(inside)
            )
            weights.append(weight)
            biases.append(target + (f.mean(0) - mean) @ weight)  # f arrives centred on the mean of all items
        self.back.copy_(torch.cat(weights, dim=1) * self.scale.unsqueeze(1))
        self.bias.copy_(torch.cat(biases))

    def _read(
        self, standardiser: Standardiser, catalogue: ItemContents, rows: Ints
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return x (n, D), uncentred f (n, F) in 64 bits, and presence (n, M) of items."""
        contents = catalogue.batch(rows).to(self.projection.device)
        x = standardiser(contents)
        return x, self._fuse(x, contents.present, self.projection).double(), contents.present
