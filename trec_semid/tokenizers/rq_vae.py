"""RQ-VAE: an autoencoder whose latent is a sum of codewords, coarse to fine.

Legend: B items, R positions (= levels of all channels), K codes, D sum of the modalities' widths.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, final

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from trec_semid.core.arrays import Ints
from trec_semid.layers.mlp import Mlp
from trec_semid.layers.quantize import pick_codewords, pick_present, squared_distances
from trec_semid.layers.residual import residual_codes, residual_levels
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig, fit_codebooks
from trec_semid.tokenizers.inputs.contents import Contents, ItemContents
from trec_semid.tokenizers.inputs.fusion import Fusion, FusionConfig
from trec_semid.tokenizers.learned import LearnedTokenizer, Objective, Views
from trec_semid.tokenizers.tokenizer import FitReport


class RqVaeConfig(FusionConfig):
    """Residual-quantised autoencoder."""

    kind: Literal["rq_vae"] = "rq_vae"
    codebook_size: PositiveInt = 100
    levels: PositiveInt = 6
    """Codes of an item; separated modalities share them out."""
    latent_dim: PositiveInt = 64
    hidden_widths: tuple[PositiveInt, ...] = (1024,)
    """Of the encoder; the decoder has them the other way round."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the term that pulls latents to their codewords, beside 1 for the codewords'."""
    quantization_weight: NonNegativeFloat = 0.03
    """Of both terms, in units of the latents' variance after the warm-up."""
    temperature: PositiveFloat = 0.1
    """Of a ranker's soft index over squared distances, in the same units."""
    fit: CodebookFitConfig = CodebookFitConfig(learning_rate=1e-3)


@final
class RqVae(LearnedTokenizer):
    """z = encoder(x), r_l = z - sum_{k<l} C_k[c_k], c_l = argmin_j ||r_l - C_l,j||^2, x_hat = decoder(z_q).

    z_q = z + sg(sum_l C_l[c_l] - z); loss ||e - e_hat||^2 + w sum_l (||sg[r_l] - C_l[c_l]||^2
    + commitment ||r_l - sg[C_l[c_l]]||^2), sums over dimensions, means over items.
    Source: Recommender Systems with Generative Retrieval (TIGER), 2023, section 3.1. Differs: inputs
    are standardised, codebooks start from clusters after a warm-up, dead codes are revived.
    """

    spread: Tensor
    """(R,): variance of the z of each position's channel, after the warm-up."""

    def __init__(self, config: RqVaeConfig, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims)
        self.rq_config, self.similarity = config, "euclidean"
        self.fusion = Fusion(config, dims, config.levels, scaled=True)
        widths, inputs = config.hidden_widths, [channel.dim for channel in self.fusion.channels]
        self.encoders = nn.ModuleList(Mlp(dim, [*widths, config.latent_dim]) for dim in inputs)
        self.decoders = nn.ModuleList(Mlp(config.latent_dim, [*reversed(widths), dim]) for dim in inputs)
        self.codebooks = nn.Parameter(
            torch.randn(config.levels, config.codebook_size, config.latent_dim) / config.latent_dim**0.5
        )
        self.register_buffer("spread", torch.ones(config.levels))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K at every position."""
        return (self.rq_config.codebook_size,) * self.rq_config.levels

    @property
    def position_names(self) -> tuple[str, ...]:
        """`level_0`, ... or, separated, `<modality>_0`, ..., each coarse to fine."""
        return self.fusion.position_names("level")

    def temperatures(self, temperature: float | None = None) -> Tensor:
        """Return those of the soft index over squared distances (R,)."""
        return (temperature or self.rq_config.temperature) * self.spread

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """The levels: the first ones of all channels, the second ones, and so on."""
        channels = self.fusion.channels
        return tuple(
            tuple(c.positions.start + level for c in channels if level < c.num_positions)
            for level in range(channels[0].num_positions)
        )

    def fit(self, catalogue: ItemContents, rows: Ints, seed: int) -> Iterator[FitReport]:
        """Standardise, align, warm up unquantised, start codebooks from clusters, train; of (n,) items."""
        self.standardiser.fit(catalogue, rows)
        self.fusion.fit(self.standardiser, catalogue, rows, seed, self.rq_config.codebook_size)
        yield from fit_codebooks(self, catalogue, rows, seed=seed, config=self.rq_config.fit)

    def take_spread(self, variance: Tensor) -> None:
        """Keep how far each channel's z lies from its mean, of (R,): weights and temperature have no unit."""
        for channel in self.fusion.channels:
            self.spread[channel.positions] = variance[channel.positions.start]

    @torch.no_grad()
    def encode(self, contents: Contents) -> Tensor:
        """Return the codes (B, R) int64."""
        inputs = self.fusion(self.standardiser(contents), contents.present)
        codes = [
            residual_codes(encoder(part), self.codebooks[channel.positions])
            for part, encoder, channel in zip(inputs, self.encoders, self.fusion.channels, strict=True)
        ]
        present = self.fusion.at_positions(contents.present)
        return torch.where(present, torch.cat(codes, dim=1), self.rq_config.codebook_size)

    @torch.no_grad()
    def reconstruct(self, contents: Contents, codes: Tensor) -> Tensor:
        """Return x_hat (B, D)."""
        return self._decode(self._codewords(codes))

    @torch.no_grad()
    def distances(self, contents: Contents, codes: Tensor, position: int) -> Tensor:
        """Return (B, K): squared distances of the latents, all other codes of the channel as they are."""
        inputs = self.fusion(self.standardiser(contents), contents.present)
        chosen = self._codewords(codes)
        index = next(i for i, c in enumerate(self.fusion.channels) if position < c.positions.stop)
        # Codes of later levels stay, though they were chosen for what this one left: the nearest code here
        # may therefore be another than the one the item has.
        others = chosen[:, self.fusion.channels[index].positions].sum(1) - chosen[:, position]
        return squared_distances(self.encoders[index](inputs[index]) - others, self.codebooks[position])

    def at_positions(self, present: Tensor) -> Tensor:
        """Return (B, R) bool, see `Fusion.at_positions`."""
        return self.fusion.at_positions(present)

    def view_standardised(self, x: Tensor, modalities: Tensor) -> Views:
        """Return the residuals of every level (B, R, latent_dim), their codes having been chosen in turn."""
        return self._choose(x, modalities)[0]

    def errors(self, views: Views, vectors: Tensor) -> dict[str, Tensor]:
        """Return `reconstruction` (B,) from vectors (B, R, latent_dim)."""
        rebuilt = self._decode(vectors * views.gates.unsqueeze(2))
        return {"reconstruction": self.standardiser.errors(views.x, rebuilt, views.modalities).sum(1)}

    def objective(self, contents: Contents, *, quantized: bool) -> Objective:
        """Return the losses of the class's equation, summed over the items."""
        config = self.rq_config
        views, codes = self._choose(self.standardiser(contents), contents.present)
        if not quantized:
            errors = self.errors(views, self._passing(views.latents))["reconstruction"].sum()
            nothing = torch.zeros_like(codes)
            return Objective(errors, errors.new_zeros(()), nothing, {"reconstruction": errors})
        chosen = pick_codewords(self.codebooks, codes)
        passing = self._passing(views.latents)
        vectors = chosen.detach() + passing - passing.detach()
        errors = self.errors(views, vectors)["reconstruction"].sum()
        pull = (chosen - views.latents.detach()).square().sum(2)
        push = (chosen.detach() - views.latents).square().sum(2)
        distance = (pull + config.commitment * push) / self.spread
        quantization = torch.where(views.present, distance, 0.0).sum()
        terms = {"reconstruction": errors, "quantization": quantization}
        items = errors + config.quantization_weight * quantization
        return Objective(
            items, items.new_zeros(()), torch.where(views.present, codes, config.codebook_size), terms
        )

    def _choose(self, x: Tensor, modalities: Tensor) -> tuple[Views, Tensor]:
        inputs = self.fusion(x, modalities)
        levels = [
            level
            for part, encoder, channel in zip(inputs, self.encoders, self.fusion.channels, strict=True)
            for level in residual_levels(encoder(part), self.codebooks[channel.positions])
        ]
        latents = torch.stack([level.left for level in levels], dim=1)
        present = self.at_positions(modalities)
        codes = torch.stack([level.codes for level in levels], dim=1)
        return Views(x, latents, present, present.to(x.dtype), modalities), codes

    def _passing(self, latents: Tensor) -> Tensor:
        """Share each channel's z, which is its first level's latent, out over the channel's positions."""
        # The decoder reads the sum over a channel's positions: of n parts z / n the gradient to z is the
        # identity, as straight-through asks.
        parts = [
            (latents[:, [c.positions.start]] / c.num_positions).expand(-1, c.num_positions, -1)
            for c in self.fusion.channels
        ]
        return torch.cat(parts, dim=1)

    def _codewords(self, codes: Tensor) -> Tensor:
        """Return (B, R, latent_dim), zeros where a code is 'missing'."""
        return pick_present(self.codebooks, codes)

    def _decode(self, vectors: Tensor) -> Tensor:
        sums = [vectors[:, channel.positions].sum(1) for channel in self.fusion.channels]
        return self.fusion.rebuild([decoder(z) for decoder, z in zip(self.decoders, sums, strict=True)])
