"""Models whose every place of a history predicts the next items at once: SASRec, RPG and HeterRec.

Legend: B rows, L longest history, U listed items, F tokens of an item, P places that predict, W targets a
place, R positions, K codes, D width.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from trec_semid.core.errors import ConfigError
from trec_semid.data.retrieval.places import Places
from trec_semid.models.exported import Exported, HistoryProgram, of_last
from trec_semid.models.heads.beams import NextLogProbs, parallel_heads
from trec_semid.models.heads.chained import ChainedHeads
from trec_semid.models.heads.code_heads import CodeHeads
from trec_semid.models.heads.exported import steps_of
from trec_semid.models.heads.independent import IndependentHeads
from trec_semid.models.item_scoring import (
    item_losses,
    item_vectors,
    mean_of_lists,
    mean_of_targets,
    query_vectors,
    target_and_list_losses,
)
from trec_semid.models.item_tokens import ItemTokens, Listed, Tokens
from trec_semid.models.queries import Queries, TwoStageQueries
from trec_semid.models.retrieval_model import RetrievalModel, read_by_length
from trec_semid.models.retriever import LossConfig


class SequenceModel(nn.Module, ABC):
    """Reads histories."""

    @abstractmethod
    def forward(self, histories: Tensor) -> Tensor:
        """Return states (B, L, D); those at or after a row's length mean nothing.

        Args:
            histories: (B, L, F, D) what it reads of the items, oldest first.
        """

    def look_up(self, tokens: Tokens, rows: Tensor) -> Tensor:
        """Return (num_rows, F, D): what it reads of some listed items; here all their tokens."""
        return tokens.at(rows)


@final
class NextItemProgram(HistoryProgram):
    """State of the last item, and what scores items by it; see `HistoryProgram`.

    Log-probabilities of independent codes come whole, and `code_share` says how much they count.
    """

    code_tables: Tensor

    def __init__(self, model: "NextItemModel", code_tables: Tensor | None) -> None:
        """Take the parts of a model, and rows of codes (R, K + 1, D)."""
        super().__init__()
        self.sequences, self.config, self.heads = model.sequences, model.config, model.heads
        self.has_vectors, self.says_codes = model.has_item_vectors, model.has_independent_codes
        if code_tables is not None:
            self.register_buffer("code_tables", code_tables)
        vectors = ("vectors",) if self.has_vectors else ()
        codes = ("code_log_probs",) if self.says_codes else ()
        self.outputs = (*vectors, *codes, *(("state",) if model.heads else ()))

    def forward(self, histories: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """See `HistoryProgram`; (B, L, F, D) histories."""
        state = of_last(self.sequences(histories), lengths)
        said = [query_vectors(state, self.config)] if self.has_vectors else []
        if self.heads is not None:
            if self.says_codes:
                said.append(self.heads.log_probs(state, self.code_tables))
            said.append(state)
        return tuple(said)


@final
class NextItemModel(RetrievalModel):
    """Items, sequence model and heads together: every position of a history predicts at once."""

    def __init__(
        self, items: ItemTokens, sequences: SequenceModel, config: LossConfig, *, has_codes: bool
    ) -> None:
        super().__init__()
        self.items, self.sequences, self.config = items, sequences, config
        self.loss_weights = config.weights()
        self.heads: CodeHeads | None = None
        if has_codes and items.live is not None:
            self.heads = build_heads(items.live.codes.shape[1], items.dim, config)

    @property
    def has_item_vectors(self) -> bool:
        """Whether items are scored by vectors: where a loss over items has taught these."""
        return self.config.item_weight > 0

    @property
    def predicts_codes(self) -> bool:
        """Whether codes of the next item are predicted."""
        return self.heads is not None

    @property
    def has_independent_codes(self) -> bool:
        """Whether codes are predicted, each without the others of its item."""
        return self.heads is not None and self.heads.is_independent

    @property
    def scores_catalogue(self) -> bool:
        """Whether every item can be scored: not where codes count that depend on each other."""
        codes_count = self.heads is not None and (not self.has_item_vectors or self.config.code_share > 0)
        return not codes_count or (self.heads is not None and self.heads.is_independent)

    def states(self, tokens: Tokens, places: Places) -> Tensor:
        """Return (P, D) at the places that predict."""
        look_up = partial(self.sequences.look_up, tokens)
        states = read_by_length(look_up, places, lambda histories, _: self.sequences(histories))
        return states.flatten(0, 1)[places.predicting]

    def item_vectors(self, tokens: Tokens) -> Tensor:
        """Return (U, D): the sum of an item's tokens, which its score is computed with."""
        return item_vectors(tokens, self.config)

    def query_vectors(self, states: Tensor) -> Tensor:
        """Return (P, D): states (P, D) as item vectors are multiplied with, scaled."""
        return query_vectors(states, self.config)

    def queries(self, tokens: Tokens, places: Places) -> Queries:
        """Return what all items are scored with, of the B users whose histories are given."""
        return self.queries_of(self.states_of_users(tokens, places).float(), tokens.code_tables)

    def queries_of(self, states: Tensor, code_tables: Tensor | None) -> Queries:
        """Return score(u, i) = q_u . v_i + code_share * sum_r log p_r(c_r(i) | u) as queries.

        Either term is left out where it is not learnt; codes alone count whole.

        Args:
            states: (B, D).
            code_tables: (R, K + 1, D); None without codes.
        """
        share = self.config.code_share if self.has_item_vectors else 1.0
        by_codes = None
        if self.heads is not None and code_tables is not None and share > 0:
            if not self.heads.is_independent:
                raise ConfigError(
                    "loss.code_heads = 'chained': a code has no score without those before it. Set "
                    "evaluation.beam_width, or loss.code_share = 0 where items are scored."
                )
            by_codes = share * self.heads.log_probs(states, code_tables)
        return Queries(self.query_vectors(states) if self.has_item_vectors else None, by_codes)

    def two_stage_queries(self, tokens: Tokens, places: Places) -> TwoStageQueries:
        """Return what proposes items and what decides among them; a history is read once for both."""
        assert self.heads is not None, "a config with candidates and without codes is refused"
        assert tokens.code_tables is not None, "heads have codes"
        states = self.states_of_users(tokens, places)
        of_items = Queries(self.query_vectors(states.float()), None)
        if self.heads.is_independent:
            log_probs = self.heads.log_probs(states, tokens.code_tables)
            asked = parallel_heads(log_probs.unbind(1))
            return TwoStageQueries(of_items, asked, log_probs, self.config.code_share)
        asked = self.heads.next_log_probs(states, tokens.code_tables)
        return TwoStageQueries(of_items, asked, None, self.config.code_share)

    def next_log_probs(self, tokens: Tokens, places: Places) -> NextLogProbs:
        """Return what a beam search asks of the heads."""
        assert self.heads is not None, "a config with a beam and without codes is refused"
        assert tokens.code_tables is not None, "heads have codes"
        states = self.states_of_users(tokens, places)
        return self.heads.next_log_probs(states, tokens.code_tables)

    def read_of(self, tokens: Tokens, items: Tensor) -> Tensor:
        """See `RetrievalModel`: what the sequence model reads, (U, F, D)."""
        return self.sequences.look_up(tokens, torch.arange(len(items), device=items.device))

    def exported(self, code_tables: Tensor | None) -> Exported:
        """See `RetrievalModel`; (R, K + 1, D) code tables."""
        # Independent codes are said at once, by the history alone.
        steps = ()
        if self.heads is not None and code_tables is not None and not self.heads.is_independent:
            steps = steps_of(self.heads, code_tables)
        share = self.config.code_share if self.has_item_vectors else 1.0
        return Exported(NextItemProgram(self, code_tables), steps, share)

    def states_of_users(self, tokens: Tokens, places: Places) -> Tensor:
        """Return (B, D) at the end of each history; zeros of an empty one, where no place predicts."""
        states = self.states(tokens, places)
        has_history = (places.lengths > 0).nonzero().squeeze(1)
        return states.new_zeros(len(places.lengths), states.shape[1]).index_copy(0, has_history, states)

    def forward(self, listed: Listed, places: Places) -> tuple[dict[str, Tensor], Tokens]:
        """Return the losses of each place (P,), a mean over its targets, and the items' tokens."""
        tokens = self.items(listed)
        states = self.states(tokens, places)
        losses: dict[str, Tensor] = {}
        if self.has_item_vectors:
            queries, vectors = self.query_vectors(states), self.item_vectors(tokens)
            if places.soft_targets is None:
                of_items = item_losses(queries, vectors, places.targets, places)
            else:
                of_items, of_lists = target_and_list_losses(queries, vectors, places)
                losses["listed_items"] = mean_of_lists(of_lists, places)
            losses["items"] = mean_of_targets(of_items, places.targets)
        if self.heads is not None:
            losses["codes"] = mean_of_targets(
                self._code_losses(states, tokens, places.targets), places.targets
            )
            if places.soft_targets is not None:
                of_lists = self._code_losses(states, tokens, places.soft_targets)
                losses["listed_codes"] = mean_of_lists(of_lists, places)
        return losses, tokens

    def _code_losses(self, states: Tensor, tokens: Tokens, targets: Tensor) -> Tensor:
        """Return (P, W) of states (P, D): the loss over the codes of targets (P, W), -1 for none."""
        assert self.heads is not None, "asked where codes are predicted"
        assert tokens.codes is not None, "heads have codes"
        assert tokens.code_tables is not None, "and their rows"
        # Which codes are right has no gradient: only their choice in the input has one.
        codes = tokens.codes[targets.clamp(min=0)].masked_fill(targets.unsqueeze(2) < 0, -1)
        return self.heads.loss(states, tokens.code_tables, codes)


def build_heads(num_positions: int, dim: int, config: LossConfig) -> CodeHeads:
    """Return the heads over R codes that a config asks for, for states of width D."""
    match config.code_heads:
        case "independent":
            return IndependentHeads(num_positions, dim, config.code_temperature)
        case "chained":
            facets = config.code_facets
            return ChainedHeads(num_positions, dim, config.code_temperature, num_facets=facets)
