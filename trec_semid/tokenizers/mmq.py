"""MMQ: shared and specific experts, each of which codes what the experts before it left over.

Legend: B items, M modalities, R positions (= experts), K codes, D latent width.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, final

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import normalize

from trec_semid.core.arrays import Ints
from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError
from trec_semid.core.explain import did_you_mean
from trec_semid.core.seeds import numpy_generator
from trec_semid.layers.experts import Experts
from trec_semid.layers.mlp import Mlp
from trec_semid.layers.product import principal_directions
from trec_semid.layers.quantize import (
    Similarity,
    best_codes,
    nearest_codeword,
    pick_present,
    squared_distances,
)
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig, fit_codebooks, latent_variance
from trec_semid.tokenizers.inputs.contents import Contents, ItemContents, require_items
from trec_semid.tokenizers.inputs.shards import copy_from
from trec_semid.tokenizers.learned import LearnedTokenizer, Objective, Views
from trec_semid.tokenizers.tokenizer import FitReport

SHARED, EACH = "shared", "each"


class MmqFitConfig(CodebookFitConfig):
    """How MMQ learns. Ten thousand items are 40 steps an epoch: much smaller catalogues need more epochs."""

    epochs: PositiveInt = 12
    warmup_epochs: NonNegativeInt = 0
    batch_size: PositiveInt = 256
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    revive_every: PositiveInt = 2


class MmqConfig(Config):
    """MMQ whose experts carry the error on."""

    kind: Literal["mmq"] = "mmq"
    codebook_size: PositiveInt = 100
    positions: tuple[str, ...] = (SHARED, SHARED, EACH, EACH)
    """What each position reads, in order: `shared` all modalities, a modality's name that one alone; `each`
    stands for one position of every modality. The first one is shared."""
    latent_dim: PositiveInt = 128
    expert_hidden_dim: PositiveInt | None = None
    """None: one linear map per expert, as published; a width adds a second layer beside it."""
    decoder_widths: tuple[PositiveInt, ...] = (512,)
    """Hidden widths of what the decoder has beside its linear map."""
    similarity: Similarity = "euclidean"
    """How a code is chosen: by distance, or by angle, which the paper does."""
    decay: float = Field(default=0.98, gt=0, lt=1)
    """Of the moving averages that codewords are: how much of them a step of fitting leaves as it was."""
    commitment: NonNegativeFloat = 0.1
    """Weight of what draws latents to their codewords, in units of the variance of the first latents."""
    expert_rate: PositiveFloat = 0.1
    """What part of the learning rate experts learn at. All shared experts have one gradient, that of their
    sum: fast ones drift alike, positions come to say the same, and codewords fall behind."""
    temperature: PositiveFloat = 0.1
    """Of a ranker's soft index: over cosines, or over squared distances in units of the variance of each
    position's latents."""
    fit: MmqFitConfig = MmqFitConfig()


class Carried(NamedTuple):
    """What positions choose from, one after another."""

    latents: Tensor
    """(B, R, D): u_r, with gradients to the experts."""
    codes: Tensor
    """(B, R) int64; K where missing."""


@final
class Mmq(LearnedTokenizer):
    """z_r = E_r(x_r), u_r = z_r + (u_{r-1} - q_{r-1}), c_r = argmin_j |u_r - C_r,j|^2, q_r = C_r[c_r].

    f = sum_r z_r + sg(sum_r q_r - sum_r z_r), e_hat = A f + MLP(f); x_r is all of the content where the
    expert is shared, and one modality where it is specific.
    L = |e - e_hat|^2 + commitment sum_r |u_r - sg q_r|^2 / var(u_1). Codewords are moving averages of the
    u_r that choose them. The first expert and A start from principal directions, all other experts at
    zero, codebooks from k-means one after another.
    Source: MMQ: Multimodal Mixture-of-Quantization tokenization, 2025, for shared and specific experts and
    for the estimator (eq 9). Differs: the error is carried on, where the paper's experts choose side by side
    (`mmq_published`), so no two positions say the same; no gates, so codes alone say everything. By angle,
    c_r = argmax_j cos(u_r, C_r,j): an average of u_r is as long as their mean coefficient along its direction
    (HyMiRec, 2025, whose coefficients no code stands for).
    """

    unit: Tensor
    """(): variance of the first latents at their start, the unit of commitment and decoder."""
    spread: Tensor
    """(R,): variance of each position's latents, which distances are measured in."""

    def __init__(self, config: MmqConfig, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims)
        self.mmq_config, self.similarity = config, config.similarity
        self.reads = _expand(config.positions, dims)
        # Experts that read the same run in one product; `_order` brings their latents back in order.
        groups = [name for name in (SHARED, *dims) if name in self.reads]
        members = [[r for r, read in enumerate(self.reads) if read == name] for name in groups]
        self._groups, self._order = groups, np.argsort(np.concatenate(members)).tolist()
        width, latent_dim, hidden = sum(dims.values()), config.latent_dim, config.expert_hidden_dim
        sizes = [
            (dims.get(name, width), latent_dim, len(own)) for name, own in zip(groups, members, strict=True)
        ]
        self.experts = nn.ModuleList(Experts(*size) for size in sizes)
        self.second = nn.ModuleList(Experts(*size, hidden_dim=hidden) for size in sizes if hidden)
        self.linear = nn.Linear(latent_dim, width)
        self.decoder = Mlp(latent_dim, [*config.decoder_widths, width])
        self.codebooks = nn.Parameter(
            torch.randn(len(self.reads), config.codebook_size, latent_dim) / latent_dim**0.5
        )
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer("spread", torch.ones(len(self.reads)))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K at every position."""
        return (self.mmq_config.codebook_size,) * len(self.reads)

    @property
    def position_names(self) -> tuple[str, ...]:
        """`shared_0`, `shared_1`, ..., `<modality>_0`, ..., in the order of the positions."""
        seen = Counter[str]()
        names: list[str] = []
        for read in self.reads:
            names.append(f"{read}_{seen[read]}")
            seen[read] += 1
        return tuple(names)

    def temperatures(self, temperature: float | None = None) -> Tensor:
        """Return those of the soft index (R,); positions measured by the cosine all have one."""
        own = temperature or self.mmq_config.temperature
        return own * (torch.ones_like(self.spread) if self.similarity == "cosine" else self.spread)

    @property
    def decay(self) -> float:
        """See `MmqConfig.decay`."""
        return self.mmq_config.decay

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """One position after another."""
        return tuple((r,) for r in range(len(self.reads)))

    def fit(self, catalogue: ItemContents, rows: Ints, seed: int) -> Iterator[FitReport]:
        """Standardise, start from principal directions and clusters, train; of (n,) items."""
        require_items(len(rows), self.mmq_config.codebook_size)
        for name in set(self.reads) - {SHARED}:
            require_items(int(catalogue.present[name][rows].sum()), self.mmq_config.codebook_size, field=name)
        self.standardiser.fit(catalogue, rows)
        self._start(catalogue, rows, seed)
        yield from fit_codebooks(self, catalogue, rows, seed=seed, config=self.mmq_config.fit)
        self.spread.copy_(latent_variance(self, catalogue, rows, seed))

    def rates(self, learning_rate: float) -> list[dict[str, Any]]:
        """Let experts learn slower than the decoder, see `MmqConfig.expert_rate`."""
        slow = [*self.experts.parameters(), *self.second.parameters()]
        fast = [self.codebooks, *self.linear.parameters(), *self.decoder.parameters()]
        return [
            {"params": fast, "lr": learning_rate},
            {"params": slow, "lr": learning_rate * self.mmq_config.expert_rate},
        ]

    def take_spread(self, variance: Tensor) -> None:
        """Measure in the variance of the first latents, of (R,); the others' depend on codebooks to come."""
        self.unit.copy_(variance[0])

    @torch.no_grad()
    def encode(self, contents: Contents) -> Tensor:
        """Return the codes (B, R) int64."""
        return self._carry(self.standardiser(contents), contents.present)[0].codes

    @torch.no_grad()
    def reconstruct(self, contents: Contents, codes: Tensor) -> Tensor:
        """Return x_hat (B, D)."""
        del contents  # codes say everything
        return self._decode(pick_present(self.codebooks, codes).sum(1))

    @torch.no_grad()
    def distances(self, contents: Contents, codes: Tensor, position: int) -> Tensor:
        """Return (B, K): squared distances of what the other codes leave, as they are.

        By angle, minus the squared length of it along each code; directions that point away come last.
        """
        x, chosen = self.standardiser(contents), pick_present(self.codebooks, codes)
        # Later codes stay, though they were chosen for what this one left: the nearest code here may
        # therefore be another than the one that the item has.
        left = self._experts(x, contents.present).sum(1) - (chosen.sum(1) - chosen[:, position])
        if self.similarity == "euclidean":
            return squared_distances(left, self.codebooks[position])
        along = left @ normalize(self.codebooks[position], dim=1).T
        return -along * along.abs()

    def at_positions(self, present: Tensor) -> Tensor:
        """Return (B, R) bool: shared experts read something of every item."""
        names = list(self.dims)
        always = present.new_ones(len(present))
        return torch.stack(
            [always if read == SHARED else present[:, names.index(read)] for read in self.reads], dim=1
        )

    def view_standardised(self, x: Tensor, modalities: Tensor) -> Views:
        """Return what each position chooses for (B, R, D), its predecessors' codes having been chosen."""
        carried, _ = self._carry(x, modalities)
        present = self.at_positions(modalities)
        return Views(x, carried.latents, present, present.to(x.dtype), modalities)

    def errors(self, views: Views, vectors: Tensor) -> dict[str, Tensor]:
        """Return `reconstruction` (B,) from vectors (B, R, D)."""
        return self._errors(views.x, views.modalities, (vectors * views.gates.unsqueeze(2)).sum(1))

    def objective(self, contents: Contents, *, quantized: bool) -> Objective:
        """Return the losses of the class's equation, summed over the items."""
        x = self.standardiser(contents)
        carried, z = self._carry(x, contents.present)
        nothing = x.new_zeros(())
        if not quantized:
            terms = {"reconstruction": self._errors(x, contents.present, z)["reconstruction"].sum()}
            return Objective(terms["reconstruction"], nothing, carried.codes, terms)
        chosen = pick_present(self.codebooks.detach(), carried.codes)
        f = z + (chosen.sum(1) - z).detach()
        away = (carried.latents - chosen).square().sum(2) / self.unit
        present = carried.codes < self.mmq_config.codebook_size
        terms = {
            "reconstruction": self._errors(x, contents.present, f)["reconstruction"].sum(),
            "quantization": torch.where(present, away, 0.0).sum(),
        }
        items = terms["reconstruction"] + self.mmq_config.commitment * terms["quantization"]
        return Objective(items, nothing, carried.codes, terms, carried.latents.detach())

    def _carry(self, x: Tensor, modalities: Tensor) -> tuple[Carried, Tensor]:
        """Choose one position after another; return that, and sum_r z_r (B, D)."""
        z, present = self._experts(x, modalities), self.at_positions(modalities)
        left, latents, codes = torch.zeros_like(z[:, 0]), list[Tensor](), list[Tensor]()
        for r, codebook in enumerate(self.codebooks.detach()):
            left = left + z[:, r]
            own = (
                nearest_codeword(left.detach(), codebook)
                if self.similarity == "euclidean"
                else (best_codes(left.detach() @ normalize(codebook, dim=1).T))
            )
            latents.append(left)
            codes.append(torch.where(present[:, r], own, len(codebook)))
            # What is missing has no code, and hands on what came to it.
            left = left - torch.where(present[:, r, None], codebook[own], 0.0)
        return Carried(torch.stack(latents, dim=1), torch.stack(codes, dim=1)), z.sum(1)

    def _experts(self, x: Tensor, modalities: Tensor) -> Tensor:
        """Return z (B, R, D); zeros where missing."""
        parts = {SHARED: x, **dict(zip(self.dims, x.split(list(self.dims.values()), dim=1), strict=True))}
        inputs = [parts[name] for name in self._groups]
        z = torch.cat([experts(part) for experts, part in zip(self.experts, inputs, strict=True)], dim=1)
        if self.mmq_config.expert_hidden_dim:
            z = z + torch.cat([second(part) for second, part in zip(self.second, inputs, strict=True)], dim=1)
        return torch.where(self.at_positions(modalities).unsqueeze(2), z[:, self._order], 0.0)

    def _decode(self, f: Tensor) -> Tensor:
        # Brought to variance 1 a dimension, so that the hidden units learn whatever the content's width.
        return self.linear(f) + self.decoder(f * (f.shape[1] / self.unit).sqrt())

    def _errors(self, x: Tensor, modalities: Tensor, f: Tensor) -> dict[str, Tensor]:
        return {"reconstruction": self.standardiser.errors(x, self._decode(f), modalities).sum(1)}

    @torch.no_grad()
    def _start(self, catalogue: ItemContents, rows: Ints, seed: int) -> None:
        """Let the first expert and A be principal directions of the content, and the rest add nothing."""
        for weights in self._zero_at_start():
            weights.zero_()
        size = min(len(rows), self.mmq_config.fit.kmeans_items)
        drawn = np.sort(numpy_generator(seed, "principal items").choice(rows, size=size, replace=False))
        std = self.standardiser.std
        contents = catalogue.batch(drawn).to(self.device)
        content = self.standardiser(contents) * std  # errors are in units of e
        directions, _ = principal_directions(content.cpu().numpy(), self.mmq_config.latent_dim)
        # Ranks have the same ones up to rounding; with rank 0's they stay equal to the last bit.
        directions = copy_from(0, torch.from_numpy(directions.copy()).to(std))
        width = directions.shape[1]
        # Shared experts are the first group, and the first of them is the first position's.
        _weights(self.experts[0])[0][0, :, :width] = std.unsqueeze(1) * directions * len(std) ** 0.5
        self.linear.weight[:, :width] = directions / std.unsqueeze(1)

    def _zero_at_start(self) -> Iterator[Tensor]:
        for module in (*self.experts, *self.second, self.linear, self.decoder.layers[-1]):
            yield from _weights(module)


def _weights(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module's last layer: its weight and its bias."""
    return list(module.parameters())[-2:]


def _expand(positions: tuple[str, ...], dims: Mapping[str, int]) -> tuple[str, ...]:
    """Return what each position reads: `shared` or a modality."""
    for read in positions:
        if read not in (SHARED, EACH, *dims):
            known = ", ".join((SHARED, EACH, *dims))
            raise ConfigError(
                f"tokenizer.positions: no '{read}'{did_you_mean(read, dims)}. There are: {known}."
            )
    if positions[:1] != (SHARED,):
        raise ConfigError(
            f"tokenizer.positions: the first is {repr(positions[0]) if positions else 'nothing'}: it has "
            f"to be '{SHARED}', as the others code what it leaves of all modalities."
        )
    return tuple(name for read in positions for name in (dims if read == EACH else (read,)))
