"""GemiRec's interest dictionary: residual codewords over an encoder of item vectors, which they follow.

Legend: n items, C levels, K codewords of a level, D width of items, d width of a codeword.
"""

from typing import Literal, NamedTuple, final

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from trec_semid.core.config import Config
from trec_semid.layers.mlp import Mlp
from trec_semid.layers.quantize import nearest_codeword, pick_codewords
from trec_semid.layers.residual import residual_codes
from trec_semid.models.dictionary.revival import Draw, draw_rows
from trec_semid.tokenizers.inputs.shards import sum_over_ranks


class DictionaryConfig(Config):
    """Sizes of the dictionary and how it learns; the paper's are not public."""

    num_levels: PositiveInt = 1
    """C; an interest is a tuple of so many codewords."""
    codebook_size: PositiveInt = 128
    """K, of every level."""
    dim: PositiveInt | None = None
    """Width of a codeword; that of items where not given."""
    hidden_dims: tuple[PositiveInt, ...] = ()
    """Of the encoder; the decoder has them the other way round. A linear map each where empty."""
    update: Literal["ema", "gradient"] = "ema"
    """Codewords are moving means of what chose them, or learn from a loss."""
    decay: float = Field(0.99, gt=0, lt=1)
    """Of the moving means, a batch."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the term that pulls encoded items to their codewords."""
    revive_below: float = Field(0.1, ge=0, lt=1)
    """A codeword used less than this share of the mean is replaced by a residual of the batch; with 0 only
    one that was never used is."""


class Quantised(NamedTuple):
    """Interests of n items."""

    interests: Tensor
    """(n, C) int64."""
    losses: Tensor
    """(n,): quantisation loss of each."""


@final
class InterestDictionary(nn.Module):
    """r_1 = encoder(sg[v]), m_c = argmin_j |r_c - e_cj|^2, r_{c+1} = r_c - sg[e_c,m_c].

    e_m = (e_1,m_1, .., e_C,m_C) is the embedding of an interest. loss = |sg[v] - decoder(e_m)|^2
    + 0.25 sum_c |r_c - sg[e_c]|^2, with the straight-through gradient to the encoder. Codewords are moving
    means (van den Oord et al., "Neural Discrete Representation Learning", 2017, appendix A.1), or learn from
    sum_c |sg[r_c] - e_c|^2 besides. Item vectors learn nothing from it: the dictionary follows them. Source:
    GemiRec, 2025, section on IDMM, as far as public: the quantisation is the paper's; decoder, loss and
    revival of unused codewords are ours.

    Sums and draws are over all ranks, so that codewords are the same on each and on any number of them.
    """

    usage: Tensor
    """(C, K) float32: moving mean of the items of a batch that chose a codeword."""
    num_updates: Tensor
    """() int64."""
    seed: Tensor
    """() int64."""

    def __init__(self, config: DictionaryConfig, item_dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, config.dim or item_dim
        levels, size = config.num_levels, config.codebook_size
        self.encoder = Mlp(item_dim, [*config.hidden_dims, self.dim])
        self.decoder = Mlp(levels * self.dim, [*reversed(config.hidden_dims), item_dim])
        codewords = torch.zeros(levels, size, self.dim)
        self.codewords: Tensor
        if config.update == "gradient":
            self.codewords = nn.Parameter(codewords)
        else:
            self.register_buffer("codewords", codewords)
        self.register_buffer("usage", torch.zeros(levels, size))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        # Drawn with the weights, which are the same on all ranks.
        self.register_buffer("seed", torch.randint(2**62, ()))

    def forward(self, vectors: Tensor, items: Tensor, present: Tensor) -> Quantised:
        """Return interests and losses of (n, D) item vectors; in training the dictionary follows them.

        All ranks call it together.

        Args:
            vectors: (n, D); no gradient reaches them.
            items: (n,) int64 item rows, by which unused codewords' successors are drawn.
            present: (n,) bool: others are nothing, their loss 0.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.detach().float()
            encoded = self.encoder(vectors)
            if not self.training:
                interests = residual_codes(encoded, self.codewords)
                return Quantised(interests, self._losses(vectors, encoded, interests, present))
            interests = self._revive(encoded.detach(), items, present)
            losses = self._losses(vectors, encoded, interests, present)
            self._follow(encoded.detach(), interests, present)
        return Quantised(interests, losses)

    @torch.no_grad()
    def interests(self, vectors: Tensor) -> Tensor:
        """Return (n, C) int64 of (n, D) item vectors."""
        return residual_codes(self.encoder(vectors.float()), self.codewords)

    @torch.no_grad()
    def separation(self) -> Tensor:
        """Return () the least distance of two codewords of a level, over all levels.

        Different interests differ in a level at least, so their embeddings are as far apart at least: the
        bound of the paper's Voronoi cells.
        """
        distances = torch.cdist(self.codewords, self.codewords)
        distances += torch.diag(distances.new_full((distances.shape[1],), torch.inf))
        return distances.amin()

    def _losses(self, vectors: Tensor, encoded: Tensor, interests: Tensor, present: Tensor) -> Tensor:
        """Return (n,) of (n, D) vectors and (n, d) encoded ones."""
        chosen = pick_codewords(self.codewords, interests)
        fixed = chosen.detach()
        # r_c of every level, each with the whole gradient to the encoder: what is taken off has none.
        left = encoded.unsqueeze(1) - (fixed.cumsum(1) - fixed)
        passing = fixed + (left - left.detach())
        losses = (vectors - self.decoder(passing.flatten(1))).square().sum(1)
        losses = losses + self.config.commitment * (left - fixed).square().sum((1, 2))
        if self.config.update == "gradient":
            losses = losses + (left.detach() - chosen).square().sum((1, 2))
        return torch.where(present, losses, 0.0)

    @torch.no_grad()
    def _revive(self, encoded: Tensor, items: Tensor, present: Tensor) -> Tensor:
        """Return the interests (n, C) of the encoded (n, d), unused codewords replaced before each level."""
        draw = draw_rows(items, present, self.config.codebook_size, self.seed + self.num_updates)
        left, interests = encoded, list[Tensor]()
        for level, codewords in enumerate(self.codewords):
            self._replace_unused(level, draw.of(left), draw)
            interests.append(nearest_codeword(left, codewords))
            left = left - codewords[interests[-1]]
        return torch.stack(interests, dim=1)

    def _replace_unused(self, level: int, residuals: Tensor, draw: Draw) -> None:
        """Put (K, d) drawn residuals in the place of unused codewords, as far as there are any."""
        usage, codewords = self.usage[level], self.codewords[level]
        mean = usage.mean()
        is_unused = usage <= self.config.revive_below * mean
        number = is_unused.cumsum(0) - 1
        is_new = is_unused & (number < draw.num_drawn)
        codewords.copy_(torch.where(is_new.unsqueeze(1), residuals[number.clamp(min=0)], codewords))
        # As much used as others: it has time to find its items.
        usage.copy_(torch.where(is_new, mean, usage))

    @torch.no_grad()
    def _follow(self, encoded: Tensor, interests: Tensor, present: Tensor) -> None:
        """Let usage, and codewords as moving means, take in the encoded (n, d)."""
        fixed = pick_codewords(self.codewords, interests)
        left = encoded.unsqueeze(1) - (fixed.cumsum(1) - fixed)
        rows = interests + torch.arange(interests.shape[1], device=interests.device) * self.usage.shape[1]
        weights = present.unsqueeze(1).expand_as(rows).to(encoded.dtype)
        # One exchange for all levels: the last column counts.
        told = torch.cat([left * weights.unsqueeze(2), weights.unsqueeze(2)], dim=2)
        sums = encoded.new_zeros(self.usage.numel(), self.dim + 1)
        sums = sum_over_ranks(sums.index_add(0, rows.flatten(), told.flatten(0, 1)))
        totals, counts = sums[:, :-1].view_as(self.codewords), sums[:, -1].view_as(self.usage)
        decay, before = self.config.decay, self.usage.clone()
        self.usage.mul_(decay).add_(counts, alpha=1 - decay)
        if self.config.update == "ema":
            moved = self.codewords * (decay * before).unsqueeze(2) + (1 - decay) * totals
            means = moved / self.usage.clamp(min=1e-12).unsqueeze(2)
            self.codewords.copy_(torch.where((self.usage > 0).unsqueeze(2), means, self.codewords))
        self.num_updates.add_(1)
