"""What every tokenizer can do."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from trec_semid.core.arrays import Ints
from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError
from trec_semid.core.paths import join, staged_folder, write_bytes
from trec_semid.tokenizers.inputs.behaviour import BehaviourView
from trec_semid.tokenizers.inputs.contents import Contents, ItemContents
from trec_semid.tokenizers.inputs.standardise import Standardiser

FORMAT_VERSION = 1
WEIGHTS, VIEW_WEIGHTS = "weights.safetensors", "behaviour.safetensors"


class FitReport(NamedTuple):
    """One finished round (epoch or level) of fitting."""

    round: int
    """Counts from 1."""
    num_rounds: int
    scalars: dict[str, float]
    """What was measured in this round."""


class Additive(NamedTuple):
    """A decoder that is a sum: codes c stand for sum_r a_r C_r[c_r], up to what all items share."""

    codewords: Tensor
    """(R, K, E), E the width of the decoder's input: what is quantised, channels side by side."""
    grid: Tensor | None
    """(2, R): a_r = grid[0, r] + grid[1, r] * what is stored beside a code; None where a_r is 1."""


class Moved(NamedTuple):
    """What an update did to the directions of a codebook."""

    largest: float
    """Farthest that one is now from where it was fitted, at most `max_drift`."""
    num_moved: int
    num_at_bound: int
    """Those that `max_drift` held back. When they are many it is time to fit again and encode all items."""


class Tokenizer(nn.Module, ABC):
    """Maps the content of items to semantic IDs: one code per position.

    Codes at position r lie in 0..codebook_sizes[r]-1; codebook_sizes[r] itself is the reserved
    'missing' code of positions whose modality the item does not have. Legend: B items, R positions,
    M modalities, D = sum of the modalities' widths.
    """

    def __init__(self, config: Config, dims: Mapping[str, int], *, scaled: bool = True) -> None:
        super().__init__()
        self.config = config
        self.dims = dict(dims)
        """Modality to width, in the order contents come in."""
        self.standardiser = Standardiser(dims, scaled=scaled)
        self.behaviour: BehaviourView | None = None
        """What makes the last modality of the others; None where all of them are brought."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.standardiser.mean.device

    @property
    def inputs(self) -> dict[str, int]:
        """Modality to width of what has to be brought of an item."""
        return self.dims if self.behaviour is None else self.behaviour.dims

    def complete(self, contents: Contents) -> Contents:
        """Return what the tokenizer reads, of the content that is brought of (B,) items."""
        return contents if self.behaviour is None else self.behaviour.complete(contents)

    def complete_catalogue(self, catalogue: ItemContents) -> ItemContents:
        """Return what the tokenizer reads of all items."""
        return catalogue if self.behaviour is None else self.behaviour.complete_catalogue(catalogue)

    @property
    @abstractmethod
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each of the R positions."""

    @property
    @abstractmethod
    def position_names(self) -> tuple[str, ...]:
        """What each position is called in reports, e.g. `text_0`."""

    @abstractmethod
    def fit(self, catalogue: ItemContents, rows: Ints, seed: int) -> Iterator[FitReport]:
        """Learn from the content of items `rows` (n,), yielding after every round.

        Called on every rank with the same arguments; all ranks end with the same weights.
        """

    @abstractmethod
    def encode(self, contents: Contents) -> Tensor:
        """Return the codes (B, R) int64; they depend on nothing but each item's own content."""

    @abstractmethod
    def reconstruct(self, contents: Contents, codes: Tensor) -> Tensor:
        """Return x_hat (B, D), standardised like `Standardiser.forward`, for items with these codes.

        The content is for methods whose decoder reads more of it than the codes (MMQ's gates).
        """

    def reconstruct_from_codes(self, contents: Contents, codes: Tensor) -> Tensor:
        """Return (B, D) as `reconstruct`, with nothing read but codes and which modalities there are."""
        return self.reconstruct(contents, codes)

    @abstractmethod
    def distances(self, contents: Contents, codes: Tensor, position: int) -> Tensor:
        """Return (B, K) how far each code of a position is from the item, all its other codes as they are.

        Smaller is nearer, in the units of the method; comparable between the positions of an item, up to a
        constant of the item and position.
        """

    @property
    def coefficient_bits(self) -> int:
        """Bits of each number that is stored beside a code; 0 where codes say all."""
        return 0

    def coefficients(self, contents: Contents, codes: Tensor) -> Tensor | None:
        """Return (B, R) what is stored beside codes (B, R), float16 or uint8; None where codes say all."""
        del contents, codes
        return None

    def sums_for_update(self, contents: Contents) -> Tensor | None:
        """Return (R, K, D), what (B,) new items give `move`, summed over batches; None where no code can."""
        del contents
        return None

    def move(self, sums: Tensor, rate: float) -> Moved:
        """Move codes by what new items gave, so that stored codes still mean what they did, up to a bound.

        Args:
            sums: (R, K, D) of `sums_for_update`, over all of them.
            rate: 0 moves nothing, 1 forgets where codes were.

        Raises:
            ConfigError: no code can.
        """
        raise ConfigError(f"codes of '{self.config.model_dump()['kind']}' cannot move under stored ones.")

    def additive(self) -> Additive | None:
        """Return what each code adds to what it is decoded to; None where a decoder is no sum."""
        return None

    def save(self, uri: str) -> None:
        """Write the folder of `files`."""
        with staged_folder(uri) as folder:
            for name, content in self.files().items():
                write_bytes(join(folder, name), content)

    def files(self) -> dict[str, bytes]:
        """Return `weights.safetensors` and `config.json` (config, modalities), and those of the view."""
        described = {
            "format": FORMAT_VERSION,
            "modalities": self.dims,
            "config": self.config.model_dump(mode="json"),
        }
        view = self.behaviour
        described |= {} if view is None else {"behaviour": view.described()}
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        return {
            WEIGHTS: safetensors.torch.save(weights),
            "config.json": (json.dumps(described, indent=1) + "\n").encode(),
            **({} if view is None else {VIEW_WEIGHTS: view.weights()}),
        }
