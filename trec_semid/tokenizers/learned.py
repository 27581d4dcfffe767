"""Tokenizers whose codebooks learn by gradient, so that a ranker can tune them.

Legend: B items, R positions, K codes, D sum of the modalities' widths, D_latent width of a codeword.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn

from trec_semid.layers.quantize import Similarity
from trec_semid.tokenizers.inputs.contents import Contents
from trec_semid.tokenizers.tokenizer import Tokenizer


class Views(NamedTuple):
    """What a tokenizer makes of B items before it chooses codes."""

    x: Tensor
    """(B, D): standardised content."""
    latents: Tensor
    """(B, R, D_latent): what each position chooses its code for."""
    present: Tensor
    """(B, R) bool: False where the modality that the position reads is missing."""
    gates: Tensor
    """(B, R): weight of each position in the sum; ones where a method has no gates, 0 where missing."""
    modalities: Tensor
    """(B, M) bool: which items have which modality."""


class Objective(NamedTuple):
    """Losses of a batch."""

    items: Tensor
    """(): weighted loss, summed over the batch's items."""
    weights: Tensor
    """(): weighted loss of the weights alone."""
    codes: Tensor
    """(B, R) int64; K where missing."""
    terms: dict[str, Tensor]
    """Each unweighted term, summed over the items, for the log; holds `reconstruction`."""
    points: Tensor | None = None
    """(B, R, D_latent): what moving averages average; None where codebooks learn by gradient."""


class LearnedTokenizer(Tokenizer):
    """A tokenizer with one codebook for each position, all of one size.

    The code of position r is the codeword of `codebooks[r]` nearest to `view(contents).latents[:, r]`.
    """

    codebooks: nn.Parameter
    """(R, K, D_latent)."""
    similarity: Similarity
    """How a code is chosen: largest cosine, or smallest squared distance."""

    @abstractmethod
    def temperatures(self, temperature: float | None = None) -> Tensor:
        """Return (R,) of the soft index: softmax(cosine / t), or softmax(-squared distance / t).

        Args:
            temperature: instead of the tokenizer's own; over distances, in units of the latents' variance.
        """

    def take_spread(self, variance: Tensor) -> None:
        """Take what latents are measured in from here on, where codes are chosen by distance.

        Args:
            variance: (R,) of each position's latents when the warm-up ends, summed over dimensions.
        """

    @property
    def decay(self) -> float | None:
        """How much of a codeword a step of fitting leaves as it was; None where the loss moves codewords."""
        return None

    def rates(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return what the optimizer of fitting moves, group by group, each with its rate."""
        return [{"params": list(self.parameters()), "lr": learning_rate}]

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """Positions in the order codebooks start; a stage's latents depend on the codes of those before."""
        return (tuple(range(self.codebooks.shape[0])),)

    @abstractmethod
    def at_positions(self, present: Tensor) -> Tensor:
        """Return (B, R) bool: which positions read something, of (B, M) presence."""

    @abstractmethod
    def view_standardised(self, x: Tensor, modalities: Tensor) -> Views:
        """Return the latents, with gradients to the networks that make them.

        Args:
            x: (B, D) standardised content.
            modalities: (B, M) bool, which items have which modality.
        """

    @abstractmethod
    def errors(self, views: Views, vectors: Tensor) -> dict[str, Tensor]:
        """Return squared errors of each item rebuilt from quantised vectors, differentiable in them.

        Args:
            views: of B items.
            vectors: (B, R, D_latent), a codeword or a mixture of codewords for each position.

        Returns:
            `reconstruction` (B,), in the one convention of all tokenizers, and `auxiliary` (B,) where
            the method has such a loss.
        """

    @abstractmethod
    def objective(self, contents: Contents, *, quantized: bool) -> Objective:
        """Return the losses of a batch, without codes where not `quantized`."""

    def view(self, contents: Contents) -> Views:
        """Return the latents of raw content."""
        return self.view_standardised(self.standardiser(contents), contents.present)

    def latents(self, contents: Contents) -> tuple[Tensor, Tensor]:
        """Return latents (B, R, D_latent) and which of them are present (B, R)."""
        views = self.view(contents)
        return views.latents, views.present
