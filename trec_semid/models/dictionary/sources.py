"""Where the interests of items come from: a dictionary that learns, or the first codes of semantic IDs.

Legend: U listed items, N items of the catalogue, C levels, K codewords of a level, P places that predict, W
targets a place, D width, E width of an interest's embedding.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from trec_semid.core.errors import ConfigError
from trec_semid.layers.quantize import pick_codewords
from trec_semid.layers.residual import residual_codes
from trec_semid.models.dictionary.dictionary import DictionaryConfig, InterestDictionary
from trec_semid.models.item_tokens import Tokens
from trec_semid.models.live_codes import LiveCodes
from trec_semid.tokenizers.inputs.shards import sum_over_ranks

_ITEMS_AT_ONCE = 65_536


class Labels(NamedTuple):
    """The interests of the targets of P places."""

    interests: Tensor
    """(P, W, C) int64; what stands for no target means nothing."""
    losses: Tensor | None
    """(P, W) quantisation losses, 0 for no target; None where nothing is quantised."""


class InterestSource(nn.Module, ABC):
    """Interests as tuples of C codewords, and what they are embedded by."""

    num_levels: int
    """C."""
    dim: int
    """E."""
    row_dim: int
    """Of a codeword."""
    noted: tuple[str, ...] = ()
    """Names of what `note_catalogue` returns."""

    @abstractmethod
    def of_targets(self, tokens: Tokens, vectors: Tensor, targets: Tensor, items: Tensor) -> Labels:
        """Return the interests of targets; in training what learns them may take a step. All ranks together.

        Args:
            tokens: the listed items.
            vectors: (U, D) of them.
            targets: (P, W) positions among them; -1 for none.
            items: (U,) their item rows.
        """

    @abstractmethod
    def of_listed(self, tokens: Tokens, vectors: Tensor) -> Tensor:
        """Return (U, C) int64 interests of the listed items, of vectors (U, D)."""

    @abstractmethod
    def rows_of(self, code_tables: Tensor | None) -> Tensor:
        """Return (C, K, row_dim), codewords of each level, of (R, K + 1, D) tables where items have codes."""

    def rows(self, tokens: Tokens) -> Tensor:
        """Return (C, K, row_dim), the codewords of each level."""
        return self.rows_of(tokens.code_tables)

    def embed(self, tokens: Tokens, interests: Tensor) -> Tensor:
        """Return (..., E): the codewords of (..., C) interests side by side, without a gradient to them."""
        flat = interests.reshape(-1, self.num_levels)
        return pick_codewords(self.rows(tokens).detach(), flat).view(*interests.shape[:-1], self.dim)

    seen: Tensor | None = None
    """What `existing` returns, once it is known."""

    @abstractmethod
    def existing(self, live: LiveCodes | None) -> Tensor | None:
        """Return (n,) numbers (`numbers_of`) of the interests that items had at the last look at them.

        None before the first look. They follow from what a checkpoint holds, so that a run that goes on
        asks by the same interests as one that was never stopped.

        Args:
            live: codes of items; None where items have none.
        """

    @abstractmethod
    def note_catalogue(self, vectors: Tensor, rows: slice, live: LiveCodes | None) -> dict[str, float]:
        """Take in what all items are scored by now; return numbers by the names of `noted`.

        Args:
            vectors: (n, D) of this rank's stretch; all ranks call it together.
            rows: the item rows of the stretch.
            live: codes of items; None where items have none.
        """


def numbers_of(interests: Tensor, size: int) -> Tensor:
    """Return (...) int64: a number for each tuple (..., C) of numbers below `size`, in their order."""
    places = size ** torch.arange(interests.shape[-1] - 1, -1, -1, device=interests.device)
    return (interests.long() * places).sum(-1)


@final
class LearnedInterests(InterestSource):
    """A dictionary over item vectors, with the interest of every item of the catalogue as of the last look.

    Dictionary and map are buffers, so they are in every checkpoint.
    """

    map: Tensor
    """(N, C) int32; -1 before the first look."""
    noted = ("interest_error", "interest_perplexity", "interest_moved")

    def __init__(self, config: DictionaryConfig, item_dim: int, num_items: int, device: str) -> None:
        super().__init__()
        self.dictionary = InterestDictionary(config, item_dim)
        self.num_levels, self.row_dim = config.num_levels, self.dictionary.dim
        self.dim = self.num_levels * self.row_dim
        empty = torch.full((num_items, self.num_levels), -1, dtype=torch.int32, device=device)
        self.register_buffer("map", empty)

    def of_targets(self, tokens: Tokens, vectors: Tensor, targets: Tensor, items: Tensor) -> Labels:
        """See `InterestSource`; targets are (P, W)."""
        at = targets.clamp(min=0).flatten()
        quantised = self.dictionary(vectors.index_select(0, at), items[at], targets.flatten() >= 0)
        return Labels(
            quantised.interests.view(*targets.shape, self.num_levels), quantised.losses.view(targets.shape)
        )

    def of_listed(self, tokens: Tokens, vectors: Tensor) -> Tensor:
        """See `InterestSource`; of vectors (U, D)."""
        return self.dictionary.interests(vectors)

    def rows_of(self, code_tables: Tensor | None) -> Tensor:
        """Return (C, K, d) codewords as they are now; not the memory that training changes."""
        return self.dictionary.codewords.detach().clone()

    @torch.no_grad()
    def note_catalogue(self, vectors: Tensor, rows: slice, live: LiveCodes | None) -> dict[str, float]:
        """Give every item its interest of now, of (n, D) vectors; see `InterestSource`.

        Returns:
            interest_error: share of the variance of encoded items that codewords leave.
            interest_perplexity: exp of the entropy of codewords over items, a mean over levels.
            interest_moved: share of items whose interest is another than at the last look; 1 at the first.
        """
        parts = [self._look(part) for part in vectors.split(_ITEMS_AT_ONCE)]
        fresh = torch.zeros_like(self.map)
        fresh[rows] = torch.cat([interests for interests, _ in parts]).to(fresh.dtype)
        fresh = sum_over_ranks(fresh)
        moved = (fresh != self.map).any(1).double().mean()
        self.map.copy_(fresh)
        size = self.dictionary.config.codebook_size
        self.seen = numbers_of(fresh, size).unique()
        perplexities = [_perplexity(level, size) for level in fresh.T.long()]
        left, squares, number, *total = sum_over_ranks(
            torch.stack([sums for _, sums in parts]).sum(0)
        ).tolist()
        spread = squares - sum(each * each for each in total) / max(number, 1)
        told = (left / max(spread, 1e-12), float(torch.stack(perplexities).mean()), float(moved))
        return dict(zip(self.noted, told, strict=True))

    def existing(self, live: LiveCodes | None) -> Tensor | None:
        """See `InterestSource`: (n,) of the map."""
        if self.seen is None and self.map.numel() and int(self.map[0, 0]) >= 0:
            self.seen = numbers_of(self.map, self.dictionary.config.codebook_size).unique()
        return self.seen

    def _look(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the interests (n, C) of (n, D) items, and sums (3 + d,) for the share of variance left."""
        encoded = self.dictionary.encoder(vectors.float())
        interests = residual_codes(encoded, self.dictionary.codewords)
        left = encoded - pick_codewords(self.dictionary.codewords, interests).sum(1)
        sums = [
            left.double().square().sum(),
            encoded.double().square().sum(),
            encoded.new_tensor(len(encoded)),
        ]
        return interests, torch.cat([torch.stack([each.double() for each in sums]), encoded.double().sum(0)])


def _perplexity(codes: Tensor, size: int) -> Tensor:
    """Return () exp of the entropy of (N,) codes."""
    shares = torch.bincount(codes, minlength=size).double() / max(len(codes), 1)
    return torch.exp(-torch.special.xlogy(shares, shares).sum())


@final
class CodeInterests(InterestSource):
    """The first C codes of an item's semantic ID are its interest; the rows of their tables embed it."""

    def __init__(self, num_levels: int, live: LiveCodes, dim: int) -> None:
        """Take what items have.

        Args:
            num_levels: C.
            live: codes of items.
            dim: of a row of their tables.

        Raises:
            ConfigError: semantic IDs are shorter.
        """
        super().__init__()
        num_positions = live.codes.shape[1]
        if num_levels > num_positions:
            raise ConfigError(
                f"model.interest.num_levels: semantic IDs have {num_positions} codes, not {num_levels}. "
                f"Set {num_positions} or less."
            )
        self.num_levels, self.row_dim, self.dim = num_levels, dim, num_levels * dim

    def of_targets(self, tokens: Tokens, vectors: Tensor, targets: Tensor, items: Tensor) -> Labels:
        """See `InterestSource`; targets are (P, W)."""
        return Labels(self.of_listed(tokens, vectors)[targets.clamp(min=0)], None)

    def of_listed(self, tokens: Tokens, vectors: Tensor) -> Tensor:
        """See `InterestSource`; (U, C)."""
        assert tokens.codes is not None, "a config without codes is refused"
        return tokens.codes[:, : self.num_levels]

    def rows_of(self, code_tables: Tensor | None) -> Tensor:
        """Return (C, K + 1, D) rows of the code tables; the last one stands for 'missing'."""
        assert code_tables is not None, "a config without codes is refused"
        return code_tables[: self.num_levels]

    def note_catalogue(self, vectors: Tensor, rows: slice, live: LiveCodes | None) -> dict[str, float]:
        """See `InterestSource`; codes are what they are, and there is nothing to tell; (n, D) vectors."""
        return {}

    def existing(self, live: LiveCodes | None) -> Tensor | None:
        """See `InterestSource`: (n,); there are codes before the first look, too.

        Where a tokenizer is tuned they are those of the map as it is now: it changes between looks, and a
        checkpoint has it as it is.
        """
        assert live is not None, "a config without codes is refused"
        if self.seen is None or live.tokenizer is not None:
            self.seen = numbers_of(live.codes[:, : self.num_levels], live.tables.num_rows).unique()
        return self.seen
