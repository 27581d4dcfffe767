"""Facets with residual levels: a projection that learns by gradient, codebooks that are moving averages.

Works on any number of ranks: each takes its share of every global batch, and sums are taken over all.
Legend: B items, d content width, D projected width, M facets of S = D / M dimensions, L levels,
R = M L positions (facet 0's levels first), K codes.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, final

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from trec_semid.core.arrays import Ints
from trec_semid.core.config import Config
from trec_semid.core.errors import TrainingError
from trec_semid.core.seeds import derive_seed, numpy_generator
from trec_semid.layers.kmeans import fit_kmeans
from trec_semid.layers.product import deal_directions, principal_directions
from trec_semid.layers.quantize import nearest_codes, pick_codewords
from trec_semid.metrics.effective_rank import effective_rank
from trec_semid.tokenizers.averages import Averages, codewords_of, moving_averages, restarted
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.inputs.shards import (
    copy_from,
    my_rank,
    my_share,
    refusing_together,
    sum_gradients,
    sum_over_ranks,
    world_size,
)
from trec_semid.tokenizers.inputs.standardise import Standardiser
from trec_semid.tokenizers.tokenizer import FitReport

_CHUNK_ROWS = 8192


class FacetFitConfig(Config):
    """How the projection and the codebooks learn."""

    orthogonality: Literal["exact", "penalty"] = "exact"
    """What holds the projection from shrinking: it is brought back to an orthogonal one after each step, or
    ||W W^T - I||^2 is part of the loss, as published."""
    orthogonality_weight: NonNegativeFloat = 0.1
    """Of the penalty."""
    balance_weight: NonNegativeFloat = 0.05
    """Of what facets' energies differ by."""
    decay: float = Field(default=0.99, ge=0, lt=1)
    """Of the moving averages that codewords are: how much of them a step leaves as it was."""
    epochs: NonNegativeInt = 20
    """With 0, W and codebooks stay as principal directions and k-means start them."""
    batch_size: PositiveInt = 1024
    """Items of a step, over all ranks together."""
    learning_rate: PositiveFloat = 1e-3
    """Of W, at the start; it falls to zero along half a cosine."""
    revive_every: PositiveInt = 2
    """Epochs between revivals of codes that nothing chose, in the first half of training."""
    items_per_code: PositiveInt = 256
    """Directions and first clusters are of at most so many items for each code, drawn at random."""


class Faceted(NamedTuple):
    """Projected content, and what its facets' levels make of it."""

    points: Tensor
    """(B, R, S): what each position chooses its code for."""
    codes: Tensor
    """(B, R) int64."""
    left: Tensor
    """(B, M, S): what all levels of each facet leave over."""


def quantize_facets(projected: Tensor, codebooks: Tensor, num_facets: int) -> Faceted:
    """Return i_m,l = argmin_k ||r_m,l - C_m,l,k||^2 and r_m,l+1 = r_m,l - C_m,l[i], for all facets at once.

    Source: AsymRec, 2026, its multi-faceted hierarchical quantisation.

    Args:
        projected: (B, D).
        codebooks: (R, K, S).
        num_facets: M.
    """
    left = projected.unflatten(1, (num_facets, -1))
    points, codes = [], []
    for codebook in codebooks.unflatten(0, (num_facets, -1)).unbind(1):
        chosen = nearest_codes(left, codebook, "euclidean")
        points.append(left)
        codes.append(chosen)
        left = left - pick_codewords(codebook, chosen)
    return Faceted(torch.stack(points, 2).flatten(1, 2), torch.stack(codes, 2).flatten(1), left)


@final
class FacetFit:
    """L = ||x~ - [z_1 .. z_M]||^2 + w_bal mean_m |E_m - mean E| + w_ort ||W W^T - I||^2, x~ = W (P x).

    E_m = mean ||x~^(m)||^2 over the batch; P are principal directions, dealt to the facets so that the
    products of their variances are alike (`layers.product`), and W starts as I. Codebooks start from
    clusters, level by level, follow by moving averages, and dead codes move onto what random items leave.
    """

    codebooks: Tensor
    """(R, K, S)."""

    def __init__(
        self,
        standardiser: Standardiser,
        shape: torch.Size,
        num_facets: int,
        config: FacetFitConfig,
        seed: int,
    ) -> None:
        self.standardiser, self.config, self.seed = standardiser, config, seed
        self.num_facets, self.num_codes = num_facets, shape[1]
        self.codebooks = torch.zeros(shape, device=standardiser.mean.device)
        dim = num_facets * shape[2]
        self.rotation = nn.Parameter(torch.eye(dim, device=self.codebooks.device))
        self.principal = torch.eye(len(standardiser.mean), dim, device=self.codebooks.device)
        self.variances = torch.ones(dim, device=self.codebooks.device)

    @property
    def projection(self) -> Tensor:
        """(d, D): x~ = x times it."""
        return self.principal @ self.rotation.detach().T

    def reports(self, catalogue: ItemContents, rows: Ints, *, is_whitened: bool) -> Iterator[FitReport]:
        """Start, and train on (n,) items; yield after the start and after every epoch.

        Raises:
            TrainingError: the loss is not finite.
        """
        config = self.config
        sample = self._draw(catalogue, rows, self.num_codes * config.items_per_code)
        averages, error = self._start(sample, is_whitened=is_whitened)
        yield FitReport(1, config.epochs + 1, {"reconstruction": error, **self._describe()})
        optimizer = torch.optim.Adam([self.rotation], lr=config.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(config.epochs, 1))
        for epoch in range(1, config.epochs + 1):
            epoch_rows = numpy_generator(self.seed, "epoch", epoch).permutation(rows)
            averages, usage, scalars = self._train_epoch(optimizer, averages, catalogue, epoch_rows)
            schedule.step()
            revived = 0
            if epoch <= config.epochs // 2 and epoch % config.revive_every == 0:
                averages, revived = self._revive(averages, usage, catalogue, rows, epoch)
            scalars |= self._describe(usage) | {"revived_codes": revived}
            yield FitReport(epoch + 1, config.epochs + 1, scalars)

    @torch.no_grad()
    def _start(self, sample: Tensor, *, is_whitened: bool) -> tuple[Averages, float]:
        """Take principal directions and clusters of a sample (n, d), which every rank holds alike."""
        num_facets, dim = self.num_facets, self.principal.shape[1]
        directions, variances = principal_directions(sample.cpu().numpy(), dim)
        order = deal_directions(variances, num_facets, dim // num_facets)
        directions, variances = directions[:, order], variances[order]
        if is_whitened:
            directions, variances = (
                directions / np.sqrt(np.maximum(variances, 1e-12)),
                np.ones_like(variances),
            )
        # Ranks found the same ones up to rounding; with rank 0's they stay equal to the last bit.
        self.principal.copy_(copy_from(0, torch.from_numpy(directions).to(self.principal)))
        self.variances.copy_(copy_from(0, torch.from_numpy(variances).to(self.variances)))
        projected = sample @ self.principal
        num_levels = self.codebooks.shape[0] // num_facets
        owners = [facet % world_size() for facet in range(num_facets)]
        with refusing_together():  # clustering may refuse: all exchanges come after this block
            for facet in (facet for facet, owner in enumerate(owners) if owner == my_rank()):
                left = projected.unflatten(1, (num_facets, -1))[:, facet].cpu().numpy().copy()
                for position in range(facet * num_levels, (facet + 1) * num_levels):
                    clusters = fit_kmeans(
                        left, self.num_codes, seed=derive_seed(self.seed, "level", position)
                    )
                    self.codebooks[position] = torch.from_numpy(clusters.centroids)
                    left -= clusters.centroids[clusters.codes]
        for facet, owner in enumerate(owners):
            own = slice(facet * num_levels, (facet + 1) * num_levels)
            self.codebooks[own] = copy_from(owner, self.codebooks[own])
        chosen = quantize_facets(projected, self.codebooks, num_facets)
        # As if batches before had been like the sample.
        counts = _counts(chosen.codes, self.num_codes) * (self.config.batch_size / len(sample))
        error = copy_from(0, chosen.left.square().sum((1, 2)).mean())
        return Averages(counts, self.codebooks * counts.unsqueeze(2)), float(error)

    def _train_epoch(
        self, optimizer: torch.optim.Optimizer, averages: Averages, catalogue: ItemContents, rows: Ints
    ) -> tuple[Averages, Tensor, dict[str, float]]:
        """Make one pass; return the averages, how often each code was chosen (R, K), and mean terms."""
        config, device = self.config, self.codebooks.device
        usage, totals = torch.zeros(averages.counts.shape, device=device), torch.zeros(3, device=device)
        for batch in np.array_split(rows, -(-len(rows) // config.batch_size)):
            x = self.standardiser(catalogue.batch(my_share(batch)).to(device))
            projected = x @ self.principal @ self.rotation.T
            chosen = quantize_facets(projected.detach(), self.codebooks, self.num_facets)
            rebuilt = projected.detach() - chosen.left.flatten(1)
            # Codewords have no gradient: the projection is drawn to them, and they follow it.
            error = (projected - rebuilt).square().sum() / len(batch)
            balance, apart = self._balance(projected, len(batch))
            strayed = self._strayed()
            loss = error + config.balance_weight * balance
            if config.orthogonality == "penalty":
                loss = loss + config.orthogonality_weight * strayed / world_size()
            optimizer.zero_grad()
            loss.backward()
            sum_gradients([self.rotation])
            optimizer.step()
            if config.orthogonality == "exact":
                self._make_orthogonal()
            averages = moving_averages(averages, chosen.points, chosen.codes, config.decay)
            self.codebooks = codewords_of(averages, self.codebooks)
            usage += _counts(chosen.codes, self.num_codes)
            ahead = torch.stack([error.detach(), apart / world_size(), strayed.detach() / world_size()])
            totals += ahead * len(batch)
        totals = sum_over_ranks(totals) / len(rows)
        if not totals.isfinite().all():
            raise TrainingError("tokenizer: the loss is not finite. Lower tokenizer.fit.learning_rate.")
        names = ("reconstruction", "balance", "orthogonality")
        return averages, sum_over_ranks(usage), dict(zip(names, totals.tolist(), strict=True))

    def _balance(self, projected: Tensor, num_items: int) -> tuple[Tensor, Tensor]:
        """Return what has the gradient of mean_m |E_m - mean E| for this rank's items, and the value of all.

        The sign of each difference is that of all ranks' items together.
        """
        own = projected.unflatten(1, (self.num_facets, -1)).square().sum((0, 2)) / num_items
        energies = sum_over_ranks(own.detach())
        signs = (energies - energies.mean()).sign()
        apart = (energies - energies.mean()).abs().mean()
        return ((signs - signs.mean()) * own).mean(), apart

    def _strayed(self) -> Tensor:
        """Return ||W W^T - I||^2."""
        eye = torch.eye(len(self.rotation), device=self.rotation.device)
        return (self.rotation @ self.rotation.T - eye).square().sum()

    @torch.no_grad()
    def _make_orthogonal(self) -> None:
        """Bring W to the nearest orthogonal matrix, up to rounding.

        W <- W (3 I - W^T W) / 2 (Bjorck and Bowie, 1971) squares the distance each time; one step of training
        leads a little away.
        """
        for _ in range(3):
            self.rotation.copy_(1.5 * self.rotation - 0.5 * self.rotation @ (self.rotation.T @ self.rotation))

    @torch.no_grad()
    def _revive(
        self, averages: Averages, usage: Tensor, catalogue: ItemContents, rows: Ints, epoch: int
    ) -> tuple[Averages, int]:
        """Move codes that nothing chose onto what random items bring to their position."""
        dead = usage == 0
        if not dead.any():
            return averages, 0
        seed = derive_seed(self.seed, "revive", epoch)
        generator = numpy_generator(seed, "items")
        drawn = generator.choice(rows, size=min(len(rows), 4 * self.num_codes), replace=False)
        x = self.standardiser(catalogue.batch(drawn).to(self.codebooks.device))
        points = quantize_facets(x @ self.projection, self.codebooks, self.num_facets).points
        # The n-th dead code of a position takes the n-th item.
        place = (dead.cumsum(1) - 1).clamp(0, len(drawn) - 1)
        candidates = points.transpose(0, 1).gather(1, place.unsqueeze(2).expand(-1, -1, points.shape[2]))
        self.codebooks = copy_from(0, torch.where(dead.unsqueeze(2), candidates, self.codebooks))
        averages = restarted(averages, self.codebooks, dead, self.config.batch_size)
        return averages, int(dead.sum())

    @torch.no_grad()
    def _describe(self, usage: Tensor | None = None) -> dict[str, float]:
        """Return the effective rank of x~, of the sample's covariance, and how a pass used the codes."""
        scalars = {"effective_rank": effective_rank(self.rotation * self.variances @ self.rotation.T)}
        if usage is not None:
            shares = usage / usage.sum(1, keepdim=True).clamp(min=1)
            scalars |= {
                "entropy": float(torch.special.entr(shares).sum(1).mean()),
                "utilisation": float((usage > 0).float().mean()),
                "dead_codes": float((usage == 0).sum()),
            }
        return scalars

    @torch.no_grad()
    def _draw(self, catalogue: ItemContents, rows: Ints, size: int) -> Tensor:
        """Return the standardised content (n, d) of at most so many items, equal on all ranks."""
        generator = numpy_generator(self.seed, "kmeans items")
        drawn = np.sort(generator.choice(rows, size=min(len(rows), size), replace=False))
        device = self.codebooks.device
        parts = [self.standardiser(read.to(device)) for _, read in catalogue.chunks(drawn, _CHUNK_ROWS)]
        return torch.cat(parts)


def _counts(codes: Tensor, num_codes: int) -> Tensor:
    """Return (R, K): how often each code of (B, R) occurs."""
    counts = torch.zeros(codes.shape[1], num_codes, device=codes.device)
    return counts.scatter_add_(1, codes.T, torch.ones_like(codes.T, dtype=counts.dtype))
