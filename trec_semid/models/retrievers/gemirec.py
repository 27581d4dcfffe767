"""GemiRec: interests as entries of a dictionary, a posterior over those to come, and a vector for each.

Legend: B rows, L longest history, U listed items, M interests, P places that predict, W targets a place, n
questions a place, D width, E width of an interest's embedding.
"""

import math
from typing import Literal, final

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import pad

from trec_semid.core.config import faults_of_unread
from trec_semid.data.retrieval.places import Places
from trec_semid.layers.attention import Transformer, TransformerConfig, block_causal_mask
from trec_semid.layers.dropout import Dropout
from trec_semid.layers.interests.pooled_history import PooledHistory
from trec_semid.models.dictionary.dictionary import DictionaryConfig
from trec_semid.models.dictionary.exported import GemirecProgram
from trec_semid.models.dictionary.posterior import (
    Chosen,
    InterestPosterior,
    interests_of_histories,
    likeliest_interests,
)
from trec_semid.models.dictionary.sources import CodeInterests, InterestSource, LearnedInterests
from trec_semid.models.exported import Exported, without_items
from trec_semid.models.interests import chosen_interests, losses_of_chosen, losses_of_own, of_users
from trec_semid.models.item_scoring import item_losses, item_vectors, mean_of_targets, query_vectors
from trec_semid.models.item_tokens import ItemTokens, Listed, Tokens
from trec_semid.models.queries import Queries
from trec_semid.models.retrieval_model import RetrievalModel, read_by_length
from trec_semid.models.retriever import Frame, Needs, Retriever, RetrieverConfig


class GemirecConfig(RetrieverConfig):
    """GemiRec, 2025 (arXiv 2510.14626): quantised interests, as far as the paper is public."""

    kind: Literal["gemirec"] = "gemirec"
    transformer: TransformerConfig = TransformerConfig.model_validate({})
    """That reads histories."""
    hidden_dim: PositiveInt | None = None
    """H of the attention that answers questions; four times the width where not given."""
    region: NonNegativeFloat = 1.0
    """Size of the numbers in R q_m, a vector's part of the interest alone, before training; with 0 there is
    no such part. The larger, the less a user's lists have in common, and the slower they become good."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Of what is read."""
    num_interests: PositiveInt = 4
    """M of a user's lists."""
    interests: Literal["generated", "history", "free"] = "generated"
    """Which ones a user has: the likeliest by the posterior; the most frequent of the own history, without a
    posterior; or none of a dictionary, but M learnt questions, of which a target teaches the best (the model
    without quantisation)."""
    dictionary: Literal["learned", "codes"] = "learned"
    """Whether the dictionary learns, or the first codes of semantic IDs are interests."""
    interest: DictionaryConfig = DictionaryConfig.model_validate({})
    """Sizes of the dictionary; of codes the number of levels alone counts."""
    taught: Literal["own", "listed"] = "listed"
    """Which interest a target teaches: its own, though the user be never asked by that; or, of the M that
    the user is asked by, its own or else the one that scores it highest."""
    posterior: Literal["joint", "decoupled"] = "joint"
    """Whether the posterior reads the histories' states and teaches them, or has an encoder of its own over
    item vectors that it does not move, so that the two are updated apart, as published."""
    posterior_temperature: PositiveFloat = 0.1
    """Divides its cosines."""
    posterior_weight: NonNegativeFloat = 1.0
    """Of its loss."""
    state_weight: NonNegativeFloat = 0.0
    """Of a loss over items by the history's state alone, before any interest is asked by: it teaches states
    and items what the interest of the target gives away otherwise."""
    quantization_weight: NonNegativeFloat = 1.0
    """Of the dictionary's loss, which moves nothing but the dictionary."""
    interest_beam: PositiveInt = 16
    """Prefixes that a beam over the dictionary's levels follows."""


@final
class HistoryReader(nn.Module):
    """x_t = dropout(v_t + pos_t / sqrt(D)), h = causal transformer(sqrt(D) x), as SASRec reads."""

    def __init__(self, config: GemirecConfig, *, max_len: int, dim: int) -> None:
        super().__init__()
        self.scale = math.sqrt(dim)
        self.places = nn.Parameter(torch.randn(max_len, dim) * 0.02)
        self.drop = Dropout(config.dropout)
        self.transformer = Transformer(dim, config.transformer)

    def forward(self, histories: Tensor, _: Tensor) -> Tensor:
        """Return (B, L, 2 D), h_t beside x_t, from (B, L, 1, D)."""
        read = self.drop(histories.squeeze(2) + self.places[: histories.shape[1]] / self.scale)
        return torch.cat([self.transformer(self.scale * read), read], dim=2)

    def read(self, vectors: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Return h (P, D) at the places that predict, and x (B, L, D).

        Args:
            vectors: (U, D) of listed items.
            places: histories of them.
        """
        both = read_by_length(lambda rows: vectors.index_select(0, rows).unsqueeze(1), places, self)
        states, memory = both.chunk(2, dim=2)
        return states.flatten(0, 1)[places.predicting], memory


@final
class GemirecModel(RetrievalModel):
    """u_m = sum_s a_ms x_s + g * h_t + b * R q_m, a_m = softmax over s <= t of q_m . tanh(W (x_s + pos_s)).

    q_m = Q norm(e_m). score = max_m u_m . v + log p(m | h) over the user's M likeliest interests S(h). With
    m(v) the interest of an item, a target v teaches s(v): m(v) where that is in S(h), else the m in S(h) that
    scores it highest.

    loss = -log softmax(u_s(v) . V)[v] + w_g (-log p(m(v) | h)) + w_q quantisation loss
    + w_s (-log softmax(h_t . V)[v]).

    So what is trained is what lists are made of. By its own interest always (`taught = "own"`, teacher
    forcing) all targets whose interest is not in S(h) teach what nobody is asked by. Attention whose heads
    are made of codewords answers with a mean of items, which lies among these from the first step. R q_m
    leads to the region of the interest, whatever the history, and holds interests apart. Source: GemiRec,
    2025. Dictionary (IDMM), posterior (MIPDM) and retrieval conditioned on an interest (MIRM) are the
    paper's; networks, losses and sizes are not public: these are ours, the attention after ComiRec-SA
    (`PooledHistory`).
    """

    def __init__(self, items: ItemTokens, config: GemirecConfig, frame: Frame) -> None:
        super().__init__()
        self.items, self.config, self.loss_config = items, config, frame.loss
        dim = frame.dim
        self.reader = HistoryReader(config, max_len=frame.max_len, dim=dim)
        hidden_dim = config.hidden_dim or 4 * dim
        self.pooled = PooledHistory(dim, hidden_dim, frame.max_len)
        # From 0: interests begin as means of items, and state and region come in as far as they pay.
        self.state_gate, self.region = nn.Parameter(torch.zeros(dim)), None
        self.loss_weights = {"items": frame.loss.item_weight}
        self.source, self.own_reader, self.posterior = None, None, None
        std = math.sqrt(2 / hidden_dim)  # of a question's parts, as `xavier_normal_` has it for a few heads
        if config.region:
            self.region_gate = nn.Parameter(torch.zeros(dim))
            self.region = nn.Linear(hidden_dim, dim, bias=False)
            nn.init.normal_(self.region.weight, std=config.region * math.sqrt(0.5))
        if config.interests == "free":
            self.questions = nn.Parameter(torch.randn(config.num_interests, hidden_dim) * std)
            return
        self.source = source = _source(items, config, frame)
        self.noted = source.noted
        # Codewords are as long as encoded items happen to be: the norm makes questions count alike.
        ask = nn.Linear(source.dim, hidden_dim, bias=False)
        self.ask_by = nn.Sequential(nn.LayerNorm(source.dim), ask)
        nn.init.normal_(ask.weight, std=std / math.sqrt(source.dim))
        if config.state_weight:
            self.loss_weights["states"] = config.state_weight
        if config.dictionary == "learned":
            self.loss_weights["quantization"] = config.quantization_weight
        if config.interests == "generated":
            self.loss_weights["interests"] = config.posterior_weight
            size = _codebook_size(items, config)
            self.posterior = InterestPosterior(
                source.num_levels, size, source.row_dim, dim, config.posterior_temperature
            )
            if config.posterior == "decoupled":
                self.own_reader = HistoryReader(config, max_len=frame.max_len, dim=dim)

    @property
    def has_item_vectors(self) -> bool:
        """Whether items are scored by vectors: nothing else scores them."""
        return True

    def item_vectors(self, tokens: Tokens) -> Tensor:
        """Return (U, D): the sum of an item's tokens."""
        return item_vectors(tokens, self.loss_config)

    def forward(self, listed: Listed, places: Places) -> tuple[dict[str, Tensor], Tokens]:
        """Return the losses of each place by name, (P,) each, a mean over targets, and the items' tokens."""
        tokens = self.items(listed)
        vectors, targets = self.item_vectors(tokens), places.targets
        states, memory = self.reader.read(tokens.total, places)
        if self.source is None:
            asked = self.questions.expand(len(states), -1, -1)
            queries = self._vectors_of(asked, states, memory, places)
            own = losses_of_chosen(queries, vectors, chosen_interests(queries, vectors, targets), places)
            return {"items": mean_of_targets(own, targets)}, tokens
        labels = self.source.of_targets(tokens, vectors, targets, listed.rows)
        losses = {"items": self._item_losses(tokens, vectors, (states, memory), labels.interests, places)}
        if self.config.state_weight:
            by_state = query_vectors(states, self.loss_config)
            losses["states"] = item_losses(by_state, vectors, targets, places)
        if labels.losses is not None:
            losses["quantization"] = labels.losses
        if self.posterior is not None:
            seen = self._posterior_states(tokens, states, places)
            rows = self.source.rows(tokens)
            losses["interests"] = self.posterior.loss(seen, rows, labels.interests, targets)
        return {name: mean_of_targets(each, targets) for name, each in losses.items()}, tokens

    def _item_losses(
        self,
        tokens: Tokens,
        vectors: Tensor,
        read: tuple[Tensor, Tensor],
        interests: Tensor,
        places: Places,
    ) -> Tensor:
        """Return (P, W): losses over items of vectors (U, D), of targets of interests (P, W, C)."""
        assert self.source is not None, "free interests are nobody's own"
        states, memory = read
        if self.posterior is None or self.config.taught == "own":
            asked = self.ask_by(self.source.embed(tokens, interests))
            return losses_of_own(self._vectors_of(asked, states, memory, places), vectors, places)
        chosen = self._chosen(self.source, tokens, states, places)
        asked = self.ask_by(self.source.embed(tokens, chosen.interests))
        queries = self._vectors_of(asked, states, memory, places)
        taught = taught_interests(queries, vectors, interests, chosen, places.targets)
        return losses_of_chosen(queries, vectors, taught, places)

    def queries(self, tokens: Tokens, places: Places) -> Queries:
        """Return interests (B, M, D) of B users, and how likely they are; zeros of an empty history."""
        states, memory = self.reader.read(tokens.total, places)
        if self.source is None:
            asked = self.questions.expand(len(states), -1, -1)
            vectors = self._vectors_of(asked, states, memory, places)
            return Queries(of_users(vectors.float(), places), None)
        chosen = self._chosen(self.source, tokens, states, places)
        asked = self.ask_by(self.source.embed(tokens, chosen.interests))
        vectors = self._vectors_of(asked, states, memory, places)
        return Queries(of_users(vectors.float(), places), None, of_users(chosen.log_probs.float(), places))

    def read_of(self, tokens: Tokens, items: Tensor) -> Tensor:
        """See `RetrievalModel`: (U, 1, D), or (U, 2, D) with numbers of interests where these are counted."""
        total, source = tokens.total.unsqueeze(1), self.source
        if source is None or self.posterior is not None:
            return total
        own = source.of_listed(tokens, self.item_vectors(tokens)).to(total)
        return torch.cat([total, pad(own, (0, total.shape[2] - own.shape[1])).unsqueeze(1)], dim=1)

    def exported(self, code_tables: Tensor | None) -> Exported:
        """See `RetrievalModel`; (R, K + 1, D) code tables."""
        rows = None if self.source is None else self.source.rows_of(code_tables)
        existing = None if self.source is None else self.source.existing(self.items.live)
        size = 0 if self.source is None else _codebook_size(self.items, self.config)
        program = GemirecProgram(without_items(self), rows, existing, size)
        return Exported(program, has_numbers=self.source is not None and self.posterior is None)

    def note_catalogue(self, vectors: Tensor, rows: slice) -> dict[str, float]:
        """See `RetrievalModel`: the dictionary gives all items their interests of now, (n, D) vectors."""
        return {} if self.source is None else self.source.note_catalogue(vectors, rows, self.items.live)

    def _chosen(self, source: InterestSource, tokens: Tokens, states: Tensor, places: Places) -> Chosen:
        """Return the interests of users with a history: (P, M, C)."""
        size = _codebook_size(self.items, self.config)
        if self.posterior is None:
            of_listed = source.of_listed(tokens, self.item_vectors(tokens))
            has_history = (places.lengths > 0).nonzero().squeeze(1)
            of_history, lengths = of_listed[places.inputs[has_history]], places.lengths[has_history]
            return interests_of_histories(of_history, lengths, size, self.config.num_interests)
        seen = self._posterior_states(tokens, states, places)
        return likeliest_interests(
            self.posterior.next_log_probs(seen.float(), source.rows(tokens)),
            (len(seen), source.num_levels, size),
            num_interests=self.config.num_interests,
            width=self.config.interest_beam,
            existing=source.existing(self.items.live),
            device=seen.device,
        )

    def _posterior_states(self, tokens: Tokens, states: Tensor, places: Places) -> Tensor:
        """Return (P, D) that the posterior predicts from."""
        if self.own_reader is None:
            return states
        return self.own_reader.read(tokens.total.detach(), places)[0]

    def _vectors_of(self, asked: Tensor, states: Tensor, memory: Tensor, places: Places) -> Tensor:
        """Return (P, n, D), what items are multiplied with, of (P, n, H) questions and (P, D) states."""
        num_rows, length = memory.shape[:2]
        if len(asked) <= num_rows:  # one place a row at most: no grid of places that do not ask
            rows, at = places.predicting // length, places.predicting % length
            mask = torch.arange(length, device=at.device) <= at[:, None, None]
            answered = self.pooled(asked.unsqueeze(1), memory[rows], mask).squeeze(1)
            return self.queries_of(answered, asked, states)
        grid = asked.new_zeros(num_rows * length, *asked.shape[1:]).index_copy(0, places.predicting, asked)
        grid = grid.unflatten(0, (num_rows, length))
        parts: list[Tensor] = []
        for rows, longest in places.by_length():
            mask = block_causal_mask(longest, 1, grid.device)
            own = self.pooled(grid[rows, :longest], memory[rows, :longest], mask)
            parts.append(pad(own, (0, 0, 0, 0, 0, length - longest)))
        answered = torch.cat(parts)[places.order.argsort()].flatten(0, 1)[places.predicting]
        return self.queries_of(answered, asked, states)

    def queries_of(self, answered: Tensor, asked: Tensor, states: Tensor) -> Tensor:
        """Return (P, n, D) of answers (P, n, D), questions (P, n, H) and states (P, D)."""
        vectors = answered + self.state_gate * states.unsqueeze(1)
        if self.region is not None:
            vectors = vectors + self.region_gate * self.region(asked)
        return query_vectors(vectors, self.loss_config)


@torch.no_grad()
def taught_interests(
    queries: Tensor, vectors: Tensor, interests: Tensor, chosen: Chosen, targets: Tensor
) -> Tensor:
    """Return (P, W) int64: of a place's M interests the one that each target teaches.

    Its own where it is among them, else argmax_m u_m . v + log p(m | h), the likelier of equals.

    Args:
        queries: (P, M, D) of the chosen.
        vectors: (U, D) of the listed items.
        interests: (P, W, C) of the targets.
        chosen: of the places; each has one at least.
        targets: (P, W) positions among the listed items; of -1 the choice means nothing.
    """
    is_own = (chosen.interests.unsqueeze(1) == interests.unsqueeze(2)).all(3)
    scores = torch.einsum("pmd,pwd->pwm", queries.float(), vectors[targets.clamp(min=0)].float())
    scores = scores.masked_fill(is_own, torch.inf) + chosen.log_probs.unsqueeze(1)
    return scores.nan_to_num(nan=-torch.inf).argmax(2)


def _source(items: ItemTokens, config: GemirecConfig, frame: Frame) -> InterestSource:
    if config.dictionary == "learned":
        return LearnedInterests(config.interest, frame.dim, frame.num_items, frame.map_device)
    assert items.live is not None, "a config without codes is refused"
    return CodeInterests(config.interest.num_levels, items.live, frame.dim)


def _codebook_size(items: ItemTokens, config: GemirecConfig) -> int:
    if config.dictionary == "learned":
        return config.interest.codebook_size
    assert items.live is not None, "a config without codes is refused"
    return items.live.tables.num_rows


@final
class Gemirec(Retriever[GemirecConfig]):
    """Learns from losses over items, interests and the dictionary; codes are read, or are the dictionary."""

    needs = Needs(codes="read")

    @property
    def num_interests(self) -> int:
        """See `Retriever`."""
        return self.config.num_interests

    @property
    def weighs_interests(self) -> bool:
        """See `Retriever`: those of the posterior, or shares of the history; free ones have none."""
        return self.config.interests != "free"

    def faults(self, frame: Frame) -> list[str]:
        """See `Retriever`: a dictionary of codes needs codes, a beam as much width as it has interests."""
        faults, config = super().faults(frame), self.config
        faults += self._faults_of_unread()
        if config.interests == "free":
            return faults
        if config.dictionary == "codes" and not frame.has_codes:
            faults.append("model.dictionary = 'codes' needs codes: give semantic_ids, or set it to 'learned'")
        of_learned = config.dictionary == "learned"
        num_tuples = config.interest.codebook_size**config.interest.num_levels
        if of_learned and config.num_interests > num_tuples:
            faults.append(
                f"model.num_interests: the dictionary has {num_tuples} interests: set {num_tuples} or less, "
                "or raise model.interest.codebook_size"
            )
        is_beam = config.interests == "generated" and config.interest.num_levels > 1
        if is_beam and config.interest_beam < config.num_interests:
            faults.append(
                f"model.interest_beam: {config.interest_beam} prefixes are few for {config.num_interests} "
                f"interests: set {config.num_interests} or more"
            )
        return faults

    def _faults_of_unread(self) -> list[str]:
        """Return what the arm does not read: not every one has a dictionary, a posterior, or levels."""
        config, generated = self.config, "set model.interests = 'generated'"
        of_posterior = ["posterior", "posterior_temperature", "posterior_weight", "taught", "interest_beam"]
        of_dictionary = ["dictionary", "interest", "quantization_weight", "state_weight"]
        if config.interests == "free":
            because = "free interests are of no dictionary and no posterior"
            return faults_of_unread(config, "model", [*of_dictionary, *of_posterior], because, generated)
        faults: list[str] = []
        if config.interests == "history":
            because = "the interests of a history are counted, not predicted"
            faults += faults_of_unread(config, "model", of_posterior, because, generated)
        if config.dictionary == "codes":
            of_learned = sorted(set(DictionaryConfig.model_fields) - {"num_levels"})
            because, learned = "codes are read, not learnt", "set model.dictionary = 'learned'"
            faults += faults_of_unread(config.interest, "model.interest", of_learned, because, learned)
            faults += faults_of_unread(config, "model", ["quantization_weight"], because, learned)
        elif config.interests == "generated" and config.interest.num_levels == 1:
            because = "one level needs no beam"
            raised = "raise model.interest.num_levels"
            faults += faults_of_unread(config, "model", ["interest_beam"], because, raised)
        return faults

    def build(self, items: ItemTokens, frame: Frame) -> GemirecModel:
        """See `Retriever`."""
        return GemirecModel(items, self.config, frame)
