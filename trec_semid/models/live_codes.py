"""Codes of items inside a model: looked up in the map, or chosen afresh from content with a gradient.

Legend: U listed items, V of them live, R positions, K codes, D table width.
"""

from typing import Literal, NamedTuple, Self, final

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from trec_semid.core.config import Config
from trec_semid.embeddings.code_tables import CodeTables
from trec_semid.layers.quantize import pick_codewords
from trec_semid.layers.soft_index import GumbelNoise, Picked, soft_lookup
from trec_semid.tokenizers.inputs.contents import Standardised
from trec_semid.tokenizers.learned import LearnedTokenizer, Views


class FinetuneConfig(Config):
    """Fine-tuning of the tokenizer by the model's loss."""

    estimator: Literal["straight_through", "gumbel", "frozen"] = "straight_through"
    """How the choice of a code gets its gradient: `straight_through` as published; `gumbel` chooses under
    noise that fades; `frozen` not at all, which is the baseline in the same harness."""
    temperature: PositiveFloat | None = None
    """Of the soft index, in the tokenizer's units; its own where not given."""
    effective_codes: float | None = Field(default=None, gt=1)
    """Sets the temperature of every position so that an item's soft index has so many codes in effect, exp of
    its entropy and a mean over items, before the tokenizer moves. In place of `temperature`."""
    learning_rate: PositiveFloat = 1e-3
    """Of the tokenizer, beside the model's own."""
    reconstruction_weight: NonNegativeFloat = 0.5
    """alpha' of the paper's eq 19."""
    auxiliary_weight: NonNegativeFloat = 0.5
    """beta' of the paper's eq 19."""
    warmup_epochs: NonNegativeFloat = 1.0
    """Epochs on frozen codes before the tokenizer moves."""
    turn_steps: PositiveInt | None = None
    """The tokenizer learns in every other stretch of so many steps, with the model; in between the model
    learns on codes that stand still. It learns in every step where not given. Source: ETEGRec (2025), whose
    tokenizer and recommender learn in turns."""
    starts_from_codebooks: bool = False
    """Whether rows of codes start as the codewords that they stand for, turned and scaled to be as wide and
    as long as rows are, instead of at random: codes of like content start alike."""
    moves_targets: bool = False
    """Of a retriever: whether an item that is to be predicted chooses its codes with a gradient too. It may
    then choose codes that are easily predicted, all the same ones: watch `codes/entropy`, whose fall below
    `entropy_floor` ends the run. A ranker's candidates always choose."""
    recent_items: NonNegativeInt | Literal["all"] = "all"
    """History entries of a row, most recent first, whose codes are chosen afresh; older ones are looked up
    in the map. `all` is the paper's form."""
    refresh_steps: PositiveInt | None = None
    """Steps between refreshes of the item -> code map; before each evaluation only where not given."""
    noise_start: NonNegativeFloat = 1.0
    """`gumbel`: scale of the noise when the tokenizer begins to move."""
    noise_decay_epochs: PositiveFloat = 1.0
    """`gumbel`: epochs over which the noise fades to 0 in a straight line."""
    entropy_floor: float = Field(0.5, ge=0, le=1)
    """Collapse: the run stops where the mean entropy or the used codes fall below this share of the start."""

    @model_validator(mode="after")
    def _has_one_temperature(self) -> Self:
        if self.temperature is not None and self.effective_codes is not None:
            raise ValueError("effective_codes sets the temperature: leave out one of the two")
        return self


class LiveContents(NamedTuple):
    """Content of the items whose codes are chosen afresh."""

    contents: Standardised
    """Of V items."""
    places: Tensor | None
    """(V,) int64: where they stand among the listed items; None where all of these are live."""
    num_anchored: int
    """The first so many are held to rebuild their content."""
    noise: GumbelNoise | None = None
    """On the choice."""


class ChosenCodes(NamedTuple):
    """Codes of the listed items and the rows they stand for."""

    vectors: Tensor | None
    """(U, R, D), with a gradient to the choice; None where codes are looked up and have no choice."""
    codes: Tensor
    """(U, R) int64; K where missing."""
    tables: Tensor
    """(R, K + 1, D): all rows of this step."""
    errors: dict[str, Tensor]
    """Name to (anchored items,): squared errors of their rebuilt content; empty where none are live."""
    targets_choose: bool = False
    """Whether the choice has a gradient where an item is to be predicted, and not only where it is read."""

    def rows(self) -> Tensor:
        """Return (U, R, D)."""
        return pick_codewords(self.tables, self.codes) if self.vectors is None else self.vectors


@final
class LiveCodes(nn.Module):
    """The item -> code map, the tables of codes, and the tokenizer where it learns with the model."""

    codes: Tensor
    temperature: Tensor

    def __init__(
        self,
        tables: CodeTables,
        codes: Tensor,
        tokenizer: LearnedTokenizer | None = None,
        finetune: FinetuneConfig | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            tables: one a position.
            codes: (N, R) item -> code map to start from.
            tokenizer: fitted; None keeps the map as it is.
            finetune: how it learns; None where it does not.
        """
        super().__init__()
        self.tables, self.tokenizer = tables, tokenizer
        self.targets_choose = finetune is not None and finetune.moves_targets
        self.register_buffer("codes", codes)
        if tokenizer is not None:
            # Not saved here: config and tokenizer say it, or `Finetuning`, which sets it by codes in effect.
            self.register_buffer(
                "temperature", tokenizer.temperatures(finetune and finetune.temperature), persistent=False
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """R, codes that each position knows without 'missing'."""
        return (self.tables.num_rows - 1,) * self.codes.shape[1]

    def forward(self, rows: Tensor, live: LiveContents | None = None) -> ChosenCodes:
        """Return codes and vectors of (U,) item rows."""
        tables = self.tables()
        if live is None or self.tokenizer is None:
            codes = self.codes[rows].long()
            return ChosenCodes(None, codes, tables, {})
        with torch.autocast(rows.device.type, enabled=False):  # the map's codes are chosen in float32
            vectors, codes, errors = self._choose(self.tokenizer, tables, live)
        if live.places is not None:
            others = self.codes[rows].long()
            # The map's rows first, then the live ones over them: only these have a gradient to the choice.
            vectors = pick_codewords(tables, others).index_copy(0, live.places, vectors)
            codes = others.index_copy(0, live.places, codes)
        return ChosenCodes(vectors, codes, tables, errors, self.targets_choose)

    def _choose(
        self, tokenizer: LearnedTokenizer, tables: Tensor, live: LiveContents
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return vectors and codes of the live items, and errors of the anchored ones."""
        views = tokenizer.view_standardised(*live.contents)
        vectors, codes = self._look_up(tokenizer, views, tables, live.noise)
        return vectors, codes, self._errors(tokenizer, views, live.num_anchored)

    def _errors(self, tokenizer: LearnedTokenizer, views: Views, num_anchored: int) -> dict[str, Tensor]:
        """Return how well the first items are rebuilt from the codes that inference would choose."""
        anchored = Views(*(part[:num_anchored] for part in views))
        # Codebooks have no row for 'missing'; zeros stand in, which gates leave out.
        padded = functional.pad(tokenizer.codebooks, (0, 0, 0, 1))
        return tokenizer.errors(anchored, self._look_up(tokenizer, anchored, padded, None).vectors)

    def _look_up(
        self, tokenizer: LearnedTokenizer, views: Views, values: Tensor, noise: GumbelNoise | None
    ) -> Picked:
        """Choose a code for every latent and return its row; absent ones read the row after the last code."""
        return soft_lookup(
            views.latents,
            tokenizer.codebooks,
            values,
            similarity=tokenizer.similarity,
            temperature=self.temperature,
            present=views.present,
            noise=noise,
        )
