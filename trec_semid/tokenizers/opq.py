"""OPQ: a rotation, then one codebook for each stretch of dimensions.

Legend: B items, R positions, K codes, S width of a subspace, D sum of the modalities' widths.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, final

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from trec_semid.core.arrays import Ints
from trec_semid.core.seeds import derive_seed
from trec_semid.layers.product import Product, fit_product
from trec_semid.layers.quantize import nearest_codeword, pick_present, squared_distances
from trec_semid.layers.rotation import Rotation
from trec_semid.tokenizers.inputs.contents import Contents, ItemContents
from trec_semid.tokenizers.inputs.draw import draw_inputs
from trec_semid.tokenizers.inputs.fusion import Fusion, FusionConfig
from trec_semid.tokenizers.inputs.shards import copy_from, my_rank, refusing_together
from trec_semid.tokenizers.tokenizer import Additive, FitReport, Tokenizer


class OpqConfig(FusionConfig):
    """Optimised product quantisation."""

    kind: Literal["opq"] = "opq"
    codebook_size: PositiveInt = 100
    subspaces: PositiveInt = 6
    """Codes of an item; separated modalities share them out."""
    turns: PositiveInt = 20
    """How often clustering and rotation take turns."""
    max_dim: PositiveInt = 512
    """Principal directions of a channel that are coded at most; the others are taken for the average."""
    items_per_code: PositiveInt = 256
    """Fitted on at most so many items for each code, drawn at random."""


@final
class Opq(Tokenizer):
    """y = x Q in R subspaces of S dimensions, c_r = argmin_j ||y_r - C_r,j||^2, x_hat = [C_1,c .. C_R,c] Q^T.

    Source: Optimized Product Quantization for Approximate Nearest Neighbor Search, 2013; fitted by
    `fit_product`. x are the reconstruction convention's vectors, centred. Separated modalities have a
    rotation each, and each its own S. No gradients.
    """

    codebooks: Tensor

    def __init__(self, config: OpqConfig, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims, scaled=False)
        self.opq_config = config
        self.fusion = Fusion(config, dims, config.subspaces, scaled=False)
        channels = self.fusion.channels
        self.widths = tuple(-(-min(c.dim, config.max_dim) // c.num_positions) for c in channels)
        self.rotations = nn.ModuleList(
            Rotation(c.dim, width * c.num_positions) for c, width in zip(channels, self.widths, strict=True)
        )
        # Codewords of a channel with narrower subspaces end in zeros.
        width = max(self.widths)
        self.register_buffer("codebooks", torch.zeros(config.subspaces, config.codebook_size, width))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K at every position."""
        return (self.opq_config.codebook_size,) * self.opq_config.subspaces

    @property
    def position_names(self) -> tuple[str, ...]:
        """`subspace_0`, ... or, separated, `<modality>_0`, ..."""
        return self.fusion.position_names("subspace")

    @torch.no_grad()
    def fit(self, catalogue: ItemContents, rows: Ints, seed: int) -> Iterator[FitReport]:
        """Fit (n,) items channel by channel on rank 0, which hands rotations and codebooks to the others."""
        num_turns, num_channels = self.opq_config.turns, len(self.fusion.channels)
        self.standardiser.fit(catalogue, rows)
        self.fusion.fit(self.standardiser, catalogue, rows, seed, self.opq_config.codebook_size)
        for index in range(num_channels):
            with refusing_together():
                turns = self._turns(index, catalogue, rows, seed) if my_rank() == 0 else None
            for turn in range(num_turns):
                residual = torch.zeros((), device=self.device)
                if turns is not None:
                    product = next(turns)
                    residual.fill_(product.residual)
                    self._keep(index, product)
                # Between turns only rank 0 reads rotation and codebooks, so the last ones are enough to send.
                if turn == num_turns - 1:
                    self._share(index)
                scalars = {"residual": float(copy_from(0, residual))}
                yield FitReport(index * num_turns + turn + 1, num_channels * num_turns, scalars)

    @torch.no_grad()
    def encode(self, contents: Contents) -> Tensor:
        """Return the codes (B, R) int64."""
        codes = [nearest_codeword(part, self._codebook(r)) for r, part in enumerate(self._rotate(contents))]
        present = self.fusion.at_positions(contents.present)
        return torch.where(present, torch.stack(codes, dim=1), self.opq_config.codebook_size)

    @torch.no_grad()
    def reconstruct(self, contents: Contents, codes: Tensor) -> Tensor:
        """Return x_hat (B, D)."""
        chosen = pick_present(self.codebooks, codes)
        rotated = [
            chosen[:, channel.positions, :width].flatten(1)
            for channel, width in zip(self.fusion.channels, self.widths, strict=True)
        ]
        matrices = [rotation.get_buffer("matrix") for rotation in self.rotations]
        return self.fusion.rebuild([y @ matrix.T for y, matrix in zip(rotated, matrices, strict=True)])

    @torch.no_grad()
    def distances(self, contents: Contents, codes: Tensor, position: int) -> Tensor:
        """Return (B, K): squared distances in the position's subspace."""
        del codes  # subspaces know nothing of each other
        rotated = self._rotate(contents)
        return squared_distances(rotated[position], self._codebook(position))

    def additive(self) -> Additive:
        """Return codewords rotated back, each in its channel's part of the width."""
        books: list[Tensor] = []
        for channel, rotation, width in zip(self.fusion.channels, self.rotations, self.widths, strict=True):
            # Of each position its own columns of the rotation.
            columns = rotation.get_buffer("matrix").unflatten(1, (-1, width)).transpose(0, 1)
            books.append(self.codebooks[channel.positions, :, :width] @ columns.mT)
        return Additive(self.fusion.side_by_side(books), None)

    def _rotate(self, contents: Contents) -> list[Tensor]:
        """Return what each position codes: R tensors (B, S), S being the channel's own."""
        inputs = self.fusion(self.standardiser(contents), contents.present)
        return [
            part
            for values, rotation, width in zip(inputs, self.rotations, self.widths, strict=True)
            for part in rotation(values).split(width, dim=1)
        ]

    def _codebook(self, position: int) -> Tensor:
        channels = zip(self.fusion.channels, self.widths, strict=True)
        width = next(width for channel, width in channels if position < channel.positions.stop)
        return self.codebooks[position, :, :width]

    def _turns(self, index: int, catalogue: ItemContents, rows: Ints, seed: int) -> Iterator[Product]:
        config, channel = self.opq_config, self.fusion.channels[index]
        size = config.codebook_size * config.items_per_code
        points = draw_inputs(self.standardiser, self.fusion, index, catalogue, rows, size=size, seed=seed)
        return fit_product(
            points,
            channel.num_positions,
            config.codebook_size,
            turns=config.turns,
            seed=derive_seed(seed, "channel", index),
            max_dim=config.max_dim,
        )

    def _keep(self, index: int, product: Product) -> None:
        matrix, books = self.rotations[index].get_buffer("matrix"), torch.from_numpy(product.codebooks)
        matrix.copy_(torch.from_numpy(product.rotation))
        self.codebooks[self.fusion.channels[index].positions, :, : books.shape[2]] = books.to(self.codebooks)

    def _share(self, index: int) -> None:
        positions, matrix = self.fusion.channels[index].positions, self.rotations[index].get_buffer("matrix")
        matrix.copy_(copy_from(0, matrix))
        self.codebooks[positions] = copy_from(0, self.codebooks[positions])
