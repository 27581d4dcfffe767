"""How several modalities come to one tuple of codes: aligned into one input, or each with its positions.

Legend: B items, M modalities, D = sum of the modalities' widths, G channels, R positions.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Self, final

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from trec_semid.core.arrays import Ints
from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError
from trec_semid.tokenizers.inputs.alignment import Alignment, ContrastiveConfig
from trec_semid.tokenizers.inputs.contents import ItemContents, require_items
from trec_semid.tokenizers.inputs.standardise import Standardiser


class FusionConfig(Config):
    """How a tokenizer reads several modalities."""

    modalities: Literal["aligned", "separated"] = "aligned"
    """One input of all modalities together, or positions split over them (6 = 3 + 3; the first have more)."""
    alignment: Literal["concat", "contrastive"] = "concat"
    """What makes them one: side by side, or a learnt projection of each into one space."""
    contrastive: ContrastiveConfig = ContrastiveConfig()

    @model_validator(mode="after")
    def _aligns_something(self) -> Self:
        if self.modalities == "separated" and self.alignment == "contrastive":
            raise ValueError('alignment "contrastive" is for modalities = "aligned"')
        return self


class Channel(NamedTuple):
    """What a stretch of positions reads."""

    name: str | None
    """The modality; None where all of them are read."""
    dim: int
    """Width of its input."""
    positions: slice
    """Its positions, R_g of them."""

    @property
    def num_positions(self) -> int:
        """R_g."""
        return self.positions.stop - self.positions.start


@final
class Fusion(nn.Module):
    """Standardised content (B, D) to the inputs of the channels, and back.

    Aligned modalities are one channel that every item has: a missing modality is taken for the average
    (concat) or for the other one's place (contrastive). Separated, each modality is a channel of its own,
    and the positions of a missing one hold the 'missing' code.
    """

    def __init__(
        self, config: FusionConfig, dims: Mapping[str, int], num_positions: int, *, scaled: bool
    ) -> None:
        super().__init__()
        self.config, self.dims = config, tuple(dims.values())
        is_contrastive = config.alignment == "contrastive"
        self.alignment = Alignment(config.contrastive, self.dims, scaled=scaled) if is_contrastive else None
        if config.modalities == "separated":
            self.channels = _split_positions(dims, num_positions)
        else:
            dim = config.contrastive.dim if is_contrastive else sum(self.dims)
            self.channels = (Channel(None, dim, slice(0, num_positions)),)

    @property
    def is_separated(self) -> bool:
        """Whether each modality has its own positions."""
        return self.config.modalities == "separated"

    def fit(
        self, standardiser: Standardiser, catalogue: ItemContents, rows: Ints, seed: int, codebook_size: int
    ) -> None:
        """Learn the aligned space where there is one, once every channel has enough of the (n,) items.

        Raises:
            DataError: fewer items than codes, naming the modality.
        """
        for channel in self.channels:
            require_items(len(self.rows_of(channel, catalogue, rows)), codebook_size, field=channel.name)
        if self.alignment is not None:
            self.alignment.fit(standardiser, catalogue, rows, seed)

    def rows_of(self, channel: Channel, catalogue: ItemContents, rows: Ints) -> Ints:
        """Return those of (n,) rows whose items have what the channel reads."""
        return rows if channel.name is None else rows[np.asarray(catalogue.present[channel.name][rows])]

    def forward(self, x: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Return one input (B, dim) for each channel."""
        if self.is_separated:
            return x.split(self.dims, dim=1)
        return (x if self.alignment is None else self.alignment(x, present),)

    def rebuild(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return x_hat (B, D) of the channels' rebuilt inputs."""
        if self.is_separated:
            return torch.cat(list(inputs), dim=1)
        return inputs[0] if self.alignment is None else self.alignment.rebuild(inputs[0])

    def side_by_side(self, books: Sequence[Tensor]) -> Tensor:
        """Return (R, K, E) of the channels' codebooks (R_g, K, dim): zeros but in its channel's part of E."""
        before, total = 0, sum(channel.dim for channel in self.channels)
        padded: list[Tensor] = []
        for channel, book in zip(self.channels, books, strict=True):
            padded.append(pad(book, (before, total - before - channel.dim)))
            before += channel.dim
        return torch.cat(padded)

    def at_positions(self, present: Tensor) -> Tensor:
        """Return (B, R) bool: which positions read something, of (B, M) presence."""
        if not self.is_separated:
            return present.new_ones(len(present), self.channels[0].num_positions)
        parts = zip(present.split(1, dim=1), self.channels, strict=True)
        return torch.cat([part.expand(-1, channel.num_positions) for part, channel in parts], dim=1)

    def position_names(self, word: str) -> tuple[str, ...]:
        """Return `<word>_0`, ... or, separated, `<modality>_0`, ..."""
        return tuple(
            f"{channel.name or word}_{i}" for channel in self.channels for i in range(channel.num_positions)
        )


def _split_positions(dims: Mapping[str, int], num_positions: int) -> tuple[Channel, ...]:
    if num_positions < len(dims):
        raise ConfigError(
            f"modalities: {len(dims)} modalities need a position each (got {num_positions} positions). "
            'Make the semantic ID longer, or use "aligned".'
        )
    each, more = divmod(num_positions, len(dims))
    lengths = [each + (index < more) for index in range(len(dims))]
    ends = np.cumsum(lengths).tolist()
    return tuple(
        Channel(name, dim, slice(end - length, end))
        for (name, dim), length, end in zip(dims.items(), lengths, ends, strict=True)
    )
