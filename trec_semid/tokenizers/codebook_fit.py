"""Gradient training of codebooks that stay alive: warm-up, clustered start, revival of dead codes.

Works on any number of ranks: each takes its share of every global batch, and gradients are summed.
Legend: B items, R positions, K codes, D width.
"""

from collections.abc import Iterator
from typing import Self

import numpy as np
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from trec_semid.core.arrays import Ints
from trec_semid.core.config import Config
from trec_semid.core.errors import TrainingError
from trec_semid.core.finite import first_not_finite
from trec_semid.core.seeds import derive_seed, numpy_generator
from trec_semid.layers.kmeans import fit_kmeans
from trec_semid.tokenizers.averages import (
    Averages,
    codewords_of,
    even_averages,
    moving_averages,
    restarted,
)
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.inputs.draw import draw_for_positions
from trec_semid.tokenizers.inputs.shards import (
    copy_from,
    my_rank,
    my_share,
    refusing_together,
    sum_gradients,
    sum_over_ranks,
    world_size,
)
from trec_semid.tokenizers.learned import LearnedTokenizer, Objective
from trec_semid.tokenizers.tokenizer import FitReport

_CHUNK_ROWS = 4096
_VARIANCE_ITEMS, _LEAST_VARIANCE_ITEMS = 4096, 1024
_ITEMS_PER_CODE = 20
"""Items with what a position reads that make a sample do for its k-means."""
_LEAST_PROGRESS = 1e-3
"""A reconstruction loss lower by this share counts as progress."""


class CodebookFitConfig(Config):
    """How codebooks and the networks around them learn."""

    epochs: PositiveInt = 50
    warmup_epochs: NonNegativeInt = 5
    """Epochs without quantisation, before codebooks start from clusters of the latents."""
    batch_size: PositiveInt = 128
    """Items of a step, over all ranks together."""
    learning_rate: PositiveFloat = 1e-2
    """At the start; it falls to zero along half a cosine."""
    weight_decay: NonNegativeFloat = 1e-4
    patience: PositiveInt | None = None
    """Stop after so many epochs without progress in the reconstruction loss; None runs all epochs."""
    kmeans_items: PositiveInt = 20_000
    """Items drawn for the clustered start; 20 for each code where that is more."""
    revive_every: PositiveInt = 5
    """Epochs between revivals of codes that nothing chose, in the first half of training."""

    @model_validator(mode="after")
    def _quantizes(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be below epochs ({self.epochs}): codebooks learn after it")
        return self


def fit_codebooks(
    model: LearnedTokenizer, catalogue: ItemContents, rows: Ints, *, seed: int, config: CodebookFitConfig
) -> Iterator[FitReport]:
    """Train on the content of items `rows` (n,), and yield the means of every epoch.

    Raises:
        TrainingError: a loss, or a weight after an epoch's last step, that is not finite.
        DataError: fewer items than codes at a position.
    """
    groups = model.rates(config.learning_rate)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    best, best_epoch, steps = float("inf"), 0, -(-len(rows) // config.batch_size)
    following = _Following(model, config.batch_size)
    for epoch in range(1, config.epochs + 1):
        quantized = epoch > config.warmup_epochs
        if epoch == config.warmup_epochs + 1:
            model.take_spread(latent_variance(model, catalogue, rows, seed))
            start_codebooks(model, catalogue, rows, seed=seed, num_items=config.kmeans_items)
            following.start()
        epoch_rows = numpy_generator(seed, "epoch", epoch).permutation(rows)
        usage, scalars = _train_epoch(
            model, optimizer, following, catalogue, epoch_rows, config, quantized=quantized
        )
        schedule.step()
        # Losses are those before a step: what the epoch's last step did shows in the weights alone.
        bad = first_not_finite(model.named_parameters())
        if bad:
            problem = f"tokenizer: {bad} is not finite after epoch {epoch}, step {steps * epoch}"
            raise TrainingError(f"{problem}. Lower fit.learning_rate.")
        if quantized:
            revived = 0
            if epoch <= config.epochs // 2 and epoch % config.revive_every == 0:
                revived = revive_codes(model, optimizer, catalogue, rows, usage, derive_seed(seed, epoch))
                following.restart(usage == 0)
            scalars |= _describe(usage) | {"revived_codes": revived}
        yield FitReport(epoch, config.epochs, scalars)
        # Losses without quantisation do not compare with those after: the warm-up sets no best, and patience
        # counts from its end.
        if not quantized or scalars["reconstruction"] < best * (1 - _LEAST_PROGRESS):
            best, best_epoch = (scalars["reconstruction"] if quantized else best), epoch
        if config.patience and epoch - best_epoch >= config.patience:
            return


def _train_epoch(
    model: LearnedTokenizer,
    optimizer: torch.optim.Optimizer,
    following: "_Following",
    catalogue: ItemContents,
    rows: Ints,
    config: CodebookFitConfig,
    *,
    quantized: bool,
) -> tuple[Tensor, dict[str, float]]:
    """Make one pass; return how often each code was chosen (R, K) and the mean of each loss term."""
    num_positions, num_codes, _ = model.codebooks.shape
    # One column more for 'missing', which is code K; it is cut off below.
    usage = torch.zeros(num_positions, num_codes + 1, device=model.device)
    sums: dict[str, Tensor] = {}
    for batch in np.array_split(rows, -(-len(rows) // config.batch_size)):
        losses = model.objective(catalogue.batch(my_share(batch)).to(model.device), quantized=quantized)
        optimizer.zero_grad()
        # Gradients are summed over ranks: each rank has its own items of the batch, but the whole loss of
        # the weights, which would otherwise count once a rank.
        (losses.items / len(batch) + losses.weights / world_size()).backward()
        sum_gradients(model.parameters())
        optimizer.step()
        following.step(losses)
        usage.scatter_add_(1, losses.codes.T, torch.ones_like(losses.codes.T, dtype=usage.dtype))
        for name, value in losses.terms.items():
            sums[name] = sums.get(name, 0) + value.detach()
    totals = sum_over_ranks(torch.stack(list(sums.values()))) / len(rows)
    if not totals.isfinite().all():
        raise TrainingError("tokenizer: the loss is not finite. Lower fit.learning_rate.")
    return sum_over_ranks(usage)[:, :-1], dict(zip(sums, totals.tolist(), strict=True))


class _Following:
    """Codebooks of a model that are moving averages; does nothing where they learn by gradient."""

    def __init__(self, model: LearnedTokenizer, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        self._averages: Averages | None = None

    def start(self) -> None:
        """Begin where codebooks are."""
        if self._model.decay is not None:
            self._averages = even_averages(self._model.codebooks, self._batch_size)

    @torch.no_grad()
    def step(self, losses: Objective) -> None:
        """Move codebooks towards what chose them in a step."""
        if self._averages and losses.points is not None and self._model.decay is not None:
            codebooks = self._model.codebooks
            self._averages = moving_averages(self._averages, losses.points, losses.codes, self._model.decay)
            codebooks.copy_(codewords_of(self._averages, codebooks))

    def restart(self, is_new: Tensor) -> None:
        """Forget what codes (R, K) that were moved had gathered elsewhere."""
        if self._averages:
            self._averages = restarted(self._averages, self._model.codebooks, is_new, self._batch_size)


@torch.no_grad()
def latent_variance(model: LearnedTokenizer, catalogue: ItemContents, rows: Ints, seed: int) -> Tensor:
    """Return (R,): variance of each position's latents, summed over dimensions, over a sample of items."""
    some = numpy_generator(seed, "spread").permutation(rows)[:_VARIANCE_ITEMS]
    samples = draw_for_positions(model, catalogue, rows, some, least=_LEAST_VARIANCE_ITEMS, seed=seed)
    latents = _Latents(model, catalogue)
    variance = [latents.of(r, sample).var(0, correction=0).sum() for r, sample in enumerate(samples)]
    return torch.stack(variance).clamp(min=1e-12)


@torch.no_grad()
def start_codebooks(
    model: LearnedTokenizer, catalogue: ItemContents, rows: Ints, *, seed: int, num_items: int
) -> None:
    """Set every codebook to k-means clusters of its latents, spherical where codes are chosen by cosine.

    Stage by stage: residual levels cluster what the levels above left over. Ranks take positions in turn.

    Args:
        model: warmed up.
        catalogue: of the items.
        rows: (n,) items to learn from; what is clustered is a sample of them.
        seed: of the sample and the first centroids.
        num_items: size of the sample; so many for each code where that is more.

    Raises:
        DataError: on every rank: fewer items with what a position reads than codes.
    """
    least = _ITEMS_PER_CODE * model.codebooks.shape[1]
    size = min(len(rows), max(num_items, least))
    drawn = np.sort(numpy_generator(seed, "kmeans items").choice(rows, size=size, replace=False))
    samples = draw_for_positions(model, catalogue, rows, drawn, least=least, seed=seed)
    for stage in model.stages:
        owners = {position: turn % world_size() for turn, position in enumerate(stage)}
        latents = _Latents(model, catalogue)
        # Clustering may refuse on one rank. All exchanges come after this block: inside it the other ranks
        # would wait for a rank that is gone.
        with refusing_together():
            for position in (one for one, owner in owners.items() if owner == my_rank()):
                points = latents.of(position, samples[position])
                model.codebooks[position] = _cluster(model, points, derive_seed(seed, "kmeans", position))
        for position, owner in owners.items():
            model.codebooks[position] = copy_from(owner, model.codebooks[position])


def _cluster(model: LearnedTokenizer, points: Tensor, seed: int) -> Tensor:
    """Return (K, D) centroids of a position's latents."""
    spherical = model.similarity == "cosine"
    clusters = fit_kmeans(points.cpu().numpy(), model.codebooks.shape[1], seed=seed, spherical=spherical)
    # Cosine assignment ignores length, the decoder does not: codewords start as long as latents.
    length = points.norm(dim=1).mean() if spherical else 1.0
    return torch.from_numpy(clusters.centroids).to(model.codebooks) * length


@torch.no_grad()
def revive_codes(
    model: LearnedTokenizer,
    optimizer: torch.optim.Optimizer,
    catalogue: ItemContents,
    rows: Ints,
    usage: Tensor,
    seed: int,
) -> int:
    """Move codes that nothing chose onto latents of random items; return how many (equal on all ranks).

    Args:
        model: its codebooks change.
        optimizer: forgets what it gathered for these codes, which was of another place.
        catalogue: of the items.
        rows: (n,) items to draw from.
        usage: (R, K) how many items chose each code.
        seed: of the draw.
    """
    dead = usage == 0
    if not dead.any():
        return 0
    num_codes, revived = usage.shape[1], 0
    random = numpy_generator(seed, "revive")
    drawn = random.choice(rows, size=min(len(rows), 4 * num_codes), replace=False)
    samples = draw_for_positions(model, catalogue, rows, drawn, least=num_codes, seed=seed)
    latents = _Latents(model, catalogue)
    candidates_of = [latents.of(position, sample) for position, sample in enumerate(samples)]
    state = optimizer.state.get(model.codebooks, {})
    moments = [value for key, value in state.items() if key != "step"]
    for position, candidates in enumerate(candidates_of):
        codes = dead[position].nonzero().flatten()[: len(candidates)]
        model.codebooks[position, codes] = candidates[: len(codes)]
        revived += len(codes)
        for moment in moments:
            moment[position, codes] = 0.0
    # Ranks computed the same codewords up to rounding; with rank 0's they stay equal to the last bit.
    model.codebooks.copy_(copy_from(0, model.codebooks))
    return revived


class _Latents:
    """Latents of samples, each read once; the model stays as it is meanwhile."""

    def __init__(self, model: LearnedTokenizer, catalogue: ItemContents) -> None:
        self._model, self._catalogue = model, catalogue
        self._known: dict[bytes, tuple[Tensor, Tensor]] = {}

    def of(self, position: int, sample: Ints) -> Tensor:
        """Return (n, D_latent) of the items of a sample that have what a position reads, in its order."""
        key = sample.tobytes()
        if key not in self._known:
            self._known[key] = _latents(self._model, self._catalogue, sample)
        latents, present = self._known[key]
        return latents[present[:, position], position]


def _latents(model: LearnedTokenizer, catalogue: ItemContents, rows: Ints) -> tuple[Tensor, Tensor]:
    parts = [model.latents(contents.to(model.device)) for _, contents in catalogue.chunks(rows, _CHUNK_ROWS)]
    return torch.cat([latents for latents, _ in parts]), torch.cat([present for _, present in parts])


def _describe(usage: Tensor) -> dict[str, float]:
    shares = usage / usage.sum(1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(shares).sum(1).mean()
    return {"entropy": float(entropy), "utilisation": float((usage > 0).float().mean())}
