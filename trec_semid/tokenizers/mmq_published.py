"""MMQ as published: shared and specific experts side by side, one cosine codebook per expert.

Legend: B items, M modalities, R positions (= experts), D latent width.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, final

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import normalize, softmax

from trec_semid.core.arrays import Ints
from trec_semid.core.config import Config
from trec_semid.layers.experts import Experts, output_overlap
from trec_semid.layers.mlp import Mlp
from trec_semid.layers.quantize import (
    Quantized,
    Similarity,
    nearest_codes,
    pick_codewords,
    quantize_soft_index,
    quantize_straight_through,
    squared_distances,
)
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig, fit_codebooks
from trec_semid.tokenizers.inputs.contents import Contents, ItemContents, require_items
from trec_semid.tokenizers.learned import LearnedTokenizer, Objective, Views
from trec_semid.tokenizers.tokenizer import FitReport


class PublishedMmqConfig(Config):
    """MMQ stage 1; defaults as published where the paper says them."""

    kind: Literal["mmq_published"] = "mmq_published"
    codebook_size: PositiveInt = 100
    num_shared: NonNegativeInt = 2
    """Experts over all modalities together."""
    num_specific: PositiveInt = 2
    """Experts of each modality."""
    latent_dim: PositiveInt = 64
    expert_hidden_dim: PositiveInt | None = None
    """None: one linear map per expert, as published; a width makes it two layers."""
    gate_hidden_dim: PositiveInt = 64
    decoder_widths: tuple[PositiveInt, ...] = (512,)
    """Hidden widths of the decoder of all modalities."""
    auxiliary_widths: tuple[PositiveInt, ...] = (256,)
    """Hidden widths of each modality's own decoder."""
    similarity: Similarity = "cosine"
    """How a code is chosen: by angle, as published, or by distance, which is the paper's ablation."""
    codebook_learning: Literal["soft_index", "straight_through"] = "soft_index"
    """How codewords get a gradient: through a soft index (IBQ), or from a codebook loss (VQ-VAE)."""
    temperature: PositiveFloat = 0.3
    """Of the soft index; cosines lie in [-1, 1], squared distances are in units of the latents' variance."""
    reconstruction_weight: NonNegativeFloat = 12.0
    auxiliary_weight: NonNegativeFloat = 10.0
    orthogonality_weight: NonNegativeFloat = 0.005
    decorrelation_weight: NonNegativeFloat = 0.0
    """Of what positions' latents have in common, which the paper lacks; taken over each rank's own items."""
    quantization_weight: NonNegativeFloat = 0.05
    """Of the codebook learning's own loss, which the paper lacks. More of it makes positions alike, and
    tuples collide; `straight_through` codebooks learn from nothing else."""
    fit: CodebookFitConfig = CodebookFitConfig()


@final
class PublishedMmq(LearnedTokenizer):
    """Shared experts read all modalities, specific experts one; each picks a code by angle.

    z_s,i = E_s,i(x), z_m,i = E_m,i(x_m), g_m = softmax(MLP_m(x_m)), c_i = argmax_j cos(z_i, C_i,j),
    z_q = sum_i C_s,i[c] + sum_m sum_i g_m,i C_m,i[c], e_hat = decoder(z_q).
    Source: MMQ: Multimodal Mixture-of-Quantization tokenization, 2025, eq 2-8, for N modalities.
    Differs: x is standardised content, so decoders predict (e - mean) / std; a missing modality's
    terms leave the sum, while shared experts read its neutral zero; codebooks learn by the second stage's
    soft index from the start, where the paper has z + sg(c - z): `codebook_learning = "straight_through"`.
    """

    length: Tensor
    """(R, 1): root of the variance of each position's latents after the warm-up; the cosine needs none."""

    def __init__(self, config: PublishedMmqConfig, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims)
        self.mmq_config, self.similarity = config, config.similarity
        widths, latent_dim, hidden = list(dims.values()), config.latent_dim, config.expert_hidden_dim
        self.shared = Experts(sum(widths), latent_dim, config.num_shared, hidden_dim=hidden)
        self.specific = nn.ModuleList(
            Experts(width, latent_dim, config.num_specific, hidden_dim=hidden) for width in widths
        )
        self.gates = nn.ModuleList(
            Mlp(width, [config.gate_hidden_dim, config.num_specific]) for width in widths
        )
        num_positions = config.num_shared + len(widths) * config.num_specific
        self.codebooks = nn.Parameter(
            torch.randn(num_positions, config.codebook_size, latent_dim) / latent_dim**0.5
        )
        # Under the cosine it stays at ones, so no checkpoint needs it.
        self.register_buffer("length", torch.ones(num_positions, 1), persistent=self.similarity != "cosine")
        self.decoder = Mlp(latent_dim, [*config.decoder_widths, sum(widths)])
        self.auxiliary_decoders = nn.ModuleList(
            Mlp(latent_dim, [*config.auxiliary_widths, width]) for width in widths
        )

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K at every position."""
        return (self.mmq_config.codebook_size,) * self.codebooks.shape[0]

    def temperatures(self, temperature: float | None = None) -> Tensor:
        """Return those of the soft index (R,); positions measured by the cosine all have one."""
        return (temperature or self.mmq_config.temperature) * self.length.square().squeeze(1)

    @property
    def position_names(self) -> tuple[str, ...]:
        """`shared_0`, `shared_1`, ..., then `<modality>_0`, ..."""
        shared = [f"shared_{i}" for i in range(self.mmq_config.num_shared)]
        specific = [f"{name}_{i}" for name in self.dims for i in range(self.mmq_config.num_specific)]
        return (*shared, *specific)

    def fit(self, catalogue: ItemContents, rows: Ints, seed: int) -> Iterator[FitReport]:
        """Standardise, warm up without quantisation, start codebooks from clusters, train; of (n,) items."""
        for name in self.dims:
            require_items(int(catalogue.present[name][rows].sum()), self.mmq_config.codebook_size, field=name)
        self.standardiser.fit(catalogue, rows)
        yield from fit_codebooks(self, catalogue, rows, seed=seed, config=self.mmq_config.fit)

    def take_spread(self, variance: Tensor) -> None:
        """Measure distances in roots of the variance (R,); angles have no unit."""
        if self.similarity == "euclidean":
            self.length.copy_(variance.sqrt().unsqueeze(1))

    @torch.no_grad()
    def encode(self, contents: Contents) -> Tensor:
        """Return the codes (B, R) int64."""
        views = self.view(contents)
        codes = nearest_codes(views.latents, self.codebooks, self.similarity)
        return torch.where(views.present, codes, self.mmq_config.codebook_size)

    @torch.no_grad()
    def reconstruct(self, contents: Contents, codes: Tensor) -> Tensor:
        """Return x_hat (B, D)."""
        return self._decode(codes, self._gates(self.standardiser(contents), contents.present))

    @torch.no_grad()
    def reconstruct_from_codes(self, contents: Contents, codes: Tensor) -> Tensor:
        """Return x_hat (B, D) with the gates of an average item."""
        average = self.standardiser.mean.new_zeros(len(codes), sum(self.dims.values()))
        return self._decode(codes, self._gates(average, contents.present))

    def _decode(self, codes: Tensor, gates: Tensor) -> Tensor:
        codewords = pick_codewords(self.codebooks, codes.clamp(max=self.mmq_config.codebook_size - 1))
        return self.decoder(torch.einsum("br,brd->bd", gates, codewords))

    @torch.no_grad()
    def distances(self, contents: Contents, codes: Tensor, position: int) -> Tensor:
        """Return (B, K): minus the cosine with the position's latent, or the squared distance."""
        del codes  # positions know nothing of each other
        latents = self.view(contents).latents[:, position]
        if self.similarity == "euclidean":
            return squared_distances(latents, self.codebooks[position])
        latents = normalize(latents, dim=1)
        return -latents @ normalize(self.codebooks[position], dim=1).T

    def at_positions(self, present: Tensor) -> Tensor:
        """Return (B, R) bool: shared experts read something of every item."""
        shared = present.new_ones(len(present), self.mmq_config.num_shared)
        return torch.cat([shared, present.repeat_interleave(self.mmq_config.num_specific, dim=1)], dim=1)

    def view_standardised(self, x: Tensor, modalities: Tensor) -> Views:
        """Run experts and gates of (B, D) content (eq 2, 3, 5, 6)."""
        parts = [expert(part) for expert, part in zip(self.specific, self._split(x), strict=True)]
        latents = torch.cat([self.shared(x), *parts], dim=1)
        return Views(x, latents, self.at_positions(modalities), self._gates(x, modalities), modalities)

    def errors(self, views: Views, vectors: Tensor) -> dict[str, Tensor]:
        """Return the errors (B,) of eq 9 (`reconstruction`) and eq 10 (`auxiliary`) of each item."""
        fused = torch.einsum("br,brd->bd", views.gates, vectors)
        rebuilt = {"reconstruction": self.decoder(fused), "auxiliary": self._auxiliary(vectors)}
        return {
            name: self.standardiser.errors(views.x, guess, views.modalities).sum(1)
            for name, guess in rebuilt.items()
        }

    def objective(self, contents: Contents, *, quantized: bool) -> Objective:
        """Return the losses of eq 9-14, summed over the items (see `docs/tokenizer_equations.md`)."""
        config, views = self.mmq_config, self.view(contents)
        chosen = self._quantize(views.latents) if quantized else _as_it_is(views.latents)
        errors = self.errors(views, chosen.vectors)
        terms = {name: error.sum() for name, error in errors.items()}
        terms["quantization"] = torch.where(views.present, chosen.loss, 0.0).sum()
        items = config.reconstruction_weight * terms["reconstruction"]
        items = items + config.auxiliary_weight * terms["auxiliary"]
        items = items + config.quantization_weight * terms["quantization"]
        if config.decorrelation_weight:
            items = items + config.decorrelation_weight * len(views.x) * output_overlap(views.latents)
        codes = torch.where(views.present, chosen.codes, config.codebook_size)
        return Objective(items, config.orthogonality_weight * self._overlap(), codes, terms)

    def _quantize(self, latents: Tensor) -> Quantized:
        how: dict[str, Any] = {"similarity": self.similarity, "length": self.length}
        if self.mmq_config.codebook_learning == "soft_index":
            return quantize_soft_index(
                latents, self.codebooks, temperature=self.mmq_config.temperature, **how
            )
        return quantize_straight_through(latents, self.codebooks, **how)

    def _overlap(self) -> Tensor:
        """Compare experts within each group, where their matrices have one shape (eq 13)."""
        groups = [module for module in self.modules() if isinstance(module, Experts)]
        return torch.stack([group.overlap() for group in groups]).sum()

    def _gates(self, x: Tensor, present: Tensor) -> Tensor:
        shared = x.new_ones(len(x), self.mmq_config.num_shared)
        gates = [softmax(gate(part), dim=1) for gate, part in zip(self.gates, self._split(x), strict=True)]
        return torch.where(self.at_positions(present), torch.cat([shared, *gates], dim=1), 0.0)

    def _auxiliary(self, vectors: Tensor) -> Tensor:
        """Rebuild each modality from its own codewords alone, ungated (eq 10)."""
        config = self.mmq_config
        groups = vectors[:, config.num_shared :].split(config.num_specific, dim=1)
        parts = [
            decoder(group.sum(1)) for decoder, group in zip(self.auxiliary_decoders, groups, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(list(self.dims.values()), dim=1)


def _as_it_is(latents: Tensor) -> Quantized:
    # Of the warm-up, in which nobody looks at how often codes are chosen: zeros stand for codes and loss.
    nothing = latents.new_zeros(latents.shape[:2])
    return Quantized(nothing.long(), latents, nothing)
