"""An item as a set of tokens: its ID, its fields, its content and each of its codes, all of one width.

Legend: U listed items, F tokens of an item, R positions, M modalities, C their widths together, D width.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, cast, final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trec_semid.core.errors import CheckpointError
from trec_semid.embeddings.collection import PooledTables
from trec_semid.layers.quantize import pick_codewords, sum_codewords
from trec_semid.models.content_mixture import MixedContent, MixtureSizes
from trec_semid.models.live_codes import ChosenCodes, LiveCodes, LiveContents
from trec_semid.tokenizers.inputs.contents import Standardised


class Listed(NamedTuple):
    """The items a step is about."""

    rows: Tensor
    """(U,) int64 item rows."""
    features: KeyedJaggedTensor | None
    """Ids of ID and fields, a bag an item and feature; None where items have neither."""
    contents: Standardised | None
    """(U, C) content to project; None where items have none."""
    live: LiveContents | None = None
    """Which codes are chosen afresh; None looks all of them up."""


class Tokens(NamedTuple):
    """The listed items.

    Their tokens are put side by side only where they are read, which few of them are: for all items of a
    catalogue that would be the largest tensor of a step.
    """

    parts: tuple[Tensor, ...]
    """(U, F', D) each: ID and fields, then content."""
    codes: Tensor | None
    """(U, R) int64; None without codes."""
    code_tables: Tensor | None
    """(R, K + 1, D); None without codes."""
    chosen: Tensor | None
    """(U, R, D): rows of codes, with a gradient to their choice, where a tokenizer learns; None otherwise."""
    errors: dict[str, Tensor]
    """Of rebuilt content, where a tokenizer learns."""
    total: Tensor
    """(U, D): the sum of an item's tokens."""
    reads_codes: bool = True
    """Whether codes are among the tokens; otherwise they are targets alone."""
    targets_choose: bool = False
    """Whether the choice of a target's codes has a gradient as well."""

    @staticmethod
    def of(parts: Sequence[Tensor], codes: ChosenCodes | None, *, reads_codes: bool = True) -> "Tokens":
        """Return these tokens with their sum (U, D)."""
        if codes is None:
            return Tokens(tuple(parts), None, None, None, {}, _sum_of(parts))
        if not reads_codes:
            total = _sum_of(parts)
            return Tokens(tuple(parts), codes.codes, codes.tables, None, {}, total, reads_codes=False)
        # Codes that are looked up are summed without a tensor of all their rows; chosen ones have it already.
        total = (
            _sum_of(parts, sum_codewords(codes.tables, codes.codes))
            if codes.vectors is None
            else _sum_of([*parts, codes.vectors])
        )
        tokens = Tokens(tuple(parts), codes.codes, codes.tables, codes.vectors, codes.errors, total)
        return tokens._replace(targets_choose=codes.targets_choose)

    @property
    def num_tokens(self) -> int:
        """F."""
        num_codes = 0 if self.codes is None or not self.reads_codes else self.codes.shape[1]
        return sum(part.shape[1] for part in self.parts) + num_codes

    def at(self, rows: Tensor) -> Tensor:
        """Return (num_rows, F, D), tokens of some listed items: ID and fields, then content, then codes."""
        parts = [part.index_select(0, rows) for part in self.parts]
        if self.chosen is not None:
            parts.append(self.chosen.index_select(0, rows))
        elif self.codes is not None and self.code_tables is not None and self.reads_codes:
            parts.append(pick_codewords(self.code_tables, self.codes[rows]))
        return torch.cat(parts, dim=1)

    def as_targets(self) -> Tensor:
        """Return (U, D): the sum of an item's tokens; rows of its codes learn from it, their choice does not.

        A target that could choose its codes would choose those that are easily predicted: all the same ones.
        Where `targets_choose` it can all the same.
        """
        if self.targets_choose or self.chosen is None or self.codes is None or self.code_tables is None:
            return self.total
        return _sum_of(self.parts, sum_codewords(self.code_tables, self.codes))


def _sum_of(parts: Sequence[Tensor], more: Tensor | None = None) -> Tensor:
    """Return (U, D): the sum of all tokens (U, F', D) of the parts, and of what is summed already."""
    # One token is its own sum, in the same memory.
    sums = [part.squeeze(1) if part.shape[1] == 1 else part.sum(1) for part in parts]
    sums += [] if more is None else [more]
    total = sums[0]
    for other in sums[1:]:
        total = total + other
    return total


@final
class ItemTokens(nn.Module):
    """Tables of ID and fields, projections of content, and codes, side by side."""

    def __init__(
        self,
        sparse: PooledTables | None,
        content_dims: Mapping[str, int],
        live: LiveCodes | None,
        dim: int,
        *,
        content_std: float,
        content_is_unit: bool,
        mixture: MixtureSizes | None = None,
        reads_codes: bool = True,
    ) -> None:
        """Put the parts together.

        Args:
            sparse: tables of ID and fields; None where items have neither.
            content_dims: modality to width, of the content that becomes a token each.
            live: codes; None where items have none.
            dim: D.
            content_std: of a coordinate of a content's token at the start.
            content_is_unit: whether content is divided by the root of its width.
            mixture: of experts that project content, always divided so; None for a linear map.
            reads_codes: whether an item's codes are tokens of it, and not only what is predicted.
        """
        super().__init__()
        self.sparse, self.live, self.dim, self.reads_codes = sparse, live, dim, reads_codes
        self.content: nn.Module | None = None
        if content_dims and mixture:
            self.content = MixedContent(content_dims, dim, content_std, mixture)
        elif content_dims:
            self.content = ProjectedContent(content_dims, dim, content_std, is_unit=content_is_unit)
        num_codes = live.codes.shape[1] if live and reads_codes else 0
        self.num_tokens = (len(sparse.features) if sparse else 0) + len(content_dims) + num_codes

    def forward(self, listed: Listed) -> Tokens:
        """Return the tokens of the listed items."""
        parts: list[Tensor] = []
        if self.sparse is not None and listed.features is not None:
            parts.append(self.sparse(listed.features).unflatten(1, (-1, self.dim)))
        if self.content is not None and listed.contents is not None:
            parts.append(self.content(listed.contents))
        if self.live is None:
            return Tokens.of(parts, None)
        return Tokens.of(parts, self.live(listed.rows, listed.live), reads_codes=self.reads_codes)


@final
class ProjectedContent(nn.Module):
    """One linear map a modality, y = W x / s + b: (U, C) to (U, M, D); an absent modality is a learnt vector.

    AdamW moves every weight by about its rate, so a token by up to C / s times that. s is sqrt(C) where
    content is unit (of length 1 on average); with s = 1 an item may be its content alone after a few steps.
    Weights start at normal(0, std^2 s^2 / C): tokens of a standardised vector at normal(0, std^2), as rows of
    tables do.
    """

    def __init__(self, dims: Mapping[str, int], dim: int, std: float, *, is_unit: bool) -> None:
        super().__init__()
        self.widths = tuple(dims.values())
        scales = [width**-0.5 if is_unit else 1.0 for width in self.widths]
        maps = [nn.Linear(width, dim) for width in self.widths]
        for one, scale in zip(maps, scales, strict=True):
            nn.init.normal_(one.weight, std=std / (scale * math.sqrt(one.in_features)))
            nn.init.zeros_(one.bias)
        self.maps = nn.ModuleList(maps)
        # Saved, because learnt maps fit no other scale than theirs.
        self.register_buffer("scales", torch.tensor(scales))
        self.scales: Tensor
        self._made_for = tuple(self.scales.tolist())
        self.absent = nn.Parameter(torch.zeros(len(self.widths), dim))

    def forward(self, contents: Standardised) -> Tensor:
        """Return (U, M, D)."""
        parts = contents.x.split(self.widths, dim=1)
        maps = cast(Iterable[nn.Linear], self.maps)
        # The map is scaled, not the content, of which there is more.
        mapped = [
            linear(part, one.weight * scale, one.bias)
            for one, part, scale in zip(maps, parts, self.scales, strict=True)
        ]
        return torch.where(contents.modalities.unsqueeze(2), torch.stack(mapped, dim=1), self.absent)

    def expect_loaded(self) -> None:
        """Refuse weights that were learnt with another `item.content_is_unit` than the config says.

        Raises:
            CheckpointError: says which.
        """
        if tuple(self.scales.tolist()) != self._made_for:
            was_unit = "false" if bool((self.scales == 1).all()) else "true"
            raise CheckpointError(
                f"item.content_is_unit: the checkpoint was trained with {was_unit}. "
                f"Set item.content_is_unit = {was_unit}."
            )
