"""TIGER: an encoder reads the codes of a history, a decoder says the next item's codes one after another.

Legend: B rows, L longest history, U listed items, R positions, K codes, W beams, P places, D width.
"""

from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from trec_semid.core.errors import ConfigError
from trec_semid.data.retrieval.places import Places
from trec_semid.layers.attention import Transformer, TransformerConfig
from trec_semid.layers.decoder import Cache, Decoder, Memory
from trec_semid.layers.dropout import Dropout
from trec_semid.layers.full_softmax import full_softmax_loss
from trec_semid.layers.quantize import pick_codewords
from trec_semid.models.exported import Exported, HistoryProgram, StepProgram
from trec_semid.models.heads.beams import Beams, NextLogProbs
from trec_semid.models.item_tokens import ItemTokens, Listed, Tokens
from trec_semid.models.retrieval_model import RetrievalModel, read_by_length
from trec_semid.models.retriever import Frame, LossConfig, Needs, Retriever, RetrieverConfig


class TigerConfig(RetrieverConfig):
    """Recommender Systems with Generative Retrieval (TIGER), 2023, with blocks that norm first."""

    kind: Literal["tiger"] = "tiger"
    encoder: TransformerConfig = TransformerConfig.model_validate({})
    decoder: TransformerConfig = TransformerConfig.model_validate({})


@final
class TigerModel(RetrievalModel):
    """p(c_1 .. c_R | history) = prod_r p(c_r | c_1 .. c_{r-1}, history), cosine over temperature.

    The encoder reads R codes of each item of the history, both ways; the decoder is given the codes before
    position r and predicts the code there among the rows of its table. Every row predicts one item: the
    one after its last (sliding rows). Source: TIGER, section 3.2; its user token is left out.
    """

    def __init__(self, items: ItemTokens, config: TigerConfig, loss: LossConfig, *, max_len: int) -> None:
        super().__init__()
        if items.live is None or items.num_tokens != items.live.codes.shape[1]:
            raise ConfigError(
                "model.kind = 'tiger' reads and says codes alone: give semantic_ids, set item.id = false, "
                "item.fields = [], item.content = []."
            )
        self.items, dim = items, items.dim
        self.loss_weights = {"codes": loss.code_weight}
        self.scale = 1.0 / loss.code_temperature
        num_positions = items.num_tokens
        self.places = nn.Parameter(torch.randn(max_len, 1, dim) * 0.02)
        self.types = nn.Parameter(torch.randn(num_positions, dim) * 0.02)
        self.starts = nn.Parameter(torch.randn(num_positions, dim) * 0.02)
        self.drop = Dropout(config.encoder.dropout)
        self.encoder, self.decoder = Transformer(dim, config.encoder), Decoder(dim, config.decoder)

    def forward(self, listed: Listed, places: Places) -> tuple[dict[str, Tensor], Tokens]:
        """Return the loss of each place (P,), a mean over positions, and the items' tokens."""
        tokens = self.items(listed)
        assert tokens.codes is not None, "items are codes"
        assert tokens.code_tables is not None, "items are codes"
        # Places number the cells of (B, L), so this is their row; a sliding row of window 1 has one target.
        rows, targets = places.predicting // places.inputs.shape[1], places.targets[:, 0]
        memory, present = self.read(tokens, places)
        codes = tokens.codes[targets]
        # Which codes are right has no gradient, and neither has what the decoder is told of them.
        # Shifted by one: at position r the decoder has read the codes before r, and zeros before the first.
        said = torch.cat([self._start(len(rows)), pick_codewords(tokens.code_tables, codes)[:, :-1]], dim=1)
        states = self.decoder(said + self.starts, self.decoder.read(memory[rows], present[rows]))
        unit, tables = normalize(states, dim=-1), normalize(tokens.code_tables, dim=-1)
        each = [
            full_softmax_loss(unit[:, r], tables[r], codes[:, r], scale=self.scale)
            for r in range(codes.shape[1])
        ]
        return {"codes": torch.stack(each).mean(0)}, tokens

    @property
    def predicts_codes(self) -> bool:
        """Whether codes of the next item are predicted: nothing else is."""
        return True

    @property
    def scores_catalogue(self) -> bool:
        """Whether every item can be scored: only the beam's tuples are."""
        return False

    def read(self, tokens: Tokens, places: Places) -> tuple[Tensor, Tensor]:
        """Return the memory (B, L * R, D) of histories, and which of it is there (B, L * R).

        Args:
            tokens: listed items.
            places: histories; an empty one is read as one item of zeros.
        """
        cells = len(self.types) * places.inputs.shape[1]
        said = len(self.types) * places.lengths.clamp(min=1).unsqueeze(1)
        present = torch.arange(cells, device=said.device) < said

        def encoded(histories: Tensor, rows: Tensor) -> Tensor:
            """Return (b, l * R, D) of the (b, l, R, D) tokens of the given rows."""
            is_empty = (places.lengths[rows] == 0).view(-1, 1, 1, 1)
            vectors = histories.masked_fill(is_empty, 0.0) + self.places[: histories.shape[1]] + self.types
            flat = self.drop(vectors.flatten(1, 2))
            return self.encoder(flat, present[rows, None, None, : flat.shape[1]])

        return read_by_length(tokens.at, places, encoded), present

    def next_log_probs(self, tokens: Tokens, places: Places) -> NextLogProbs:
        """Return what a beam search asks, with a cache of what beams have said.

        Args:
            tokens: listed items.
            places: histories of B users.
        """
        assert tokens.code_tables is not None, "items are codes"
        tables = tokens.code_tables
        unit = normalize(tables, dim=-1)
        memory = self.decoder.read(*self.read(tokens, places))
        cache: list[Cache | None] = [None]

        def ask(position: int, beams: Beams) -> Tensor:
            """Return (B, W, K + 1) of the next code; the cache follows the beams."""
            if position == 0:
                token = self._start(len(beams.codes))
            else:
                token = tables[position - 1][beams.codes[:, :, -1]]
                # The search has reordered and forked beams since: each goes on from what its parent has said.
                cache[0] = cache[0] and cache[0].of_parents(beams.parents)
            states, cache[0] = self.decoder.step(token + self.starts[position], memory, cache[0])
            return log_softmax(normalize(states, dim=-1) @ unit[position].T * self.scale, dim=-1)

        return ask

    def read_of(self, tokens: Tokens, items: Tensor) -> Tensor:
        """See `RetrievalModel`: (U, R, D), a row a code; of (U,) items."""
        return tokens.at(torch.arange(len(items), device=items.device))

    def exported(self, code_tables: Tensor | None) -> Exported:
        """See `RetrievalModel`; (R, K + 1, D) code tables."""
        assert code_tables is not None, "items are codes"
        steps = [TigerStep(self, code_tables, position) for position in range(len(code_tables))]
        return Exported(TigerHistory(self), steps)

    def _start(self, num_rows: int) -> Tensor:
        return self.starts.new_zeros(num_rows, 1, self.starts.shape[1])


@final
class TigerHistory(HistoryProgram):
    """What the decoder looks at: keys and values of each layer, and which of them are there."""

    outputs = ("keys", "values", "present")

    def __init__(self, model: TigerModel) -> None:
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder
        self.places, self.types = model.places, model.types

    def forward(self, histories: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """See `HistoryProgram`: two (B, layers, heads, L * R, D / heads), and (B, L * R) bool."""
        vectors = (histories + self.places[: histories.shape[1]] + self.types).flatten(1, 2)
        said = len(self.types) * lengths.unsqueeze(1)
        present = torch.arange(vectors.shape[1], device=lengths.device) < said
        memory = self.decoder.read(self.encoder(vectors, present[:, None, None]), present)
        return torch.stack(memory.keys, dim=1), torch.stack(memory.values, dim=1), present


@final
class TigerStep(StepProgram):
    """The decoder at one position, over all codes before it: they are few, and a cache would be large."""

    code_tables: Tensor

    def __init__(self, model: TigerModel, code_tables: Tensor, position: int) -> None:
        """Take a model's decoder and its code tables (R, K + 1, D)."""
        super().__init__()
        self.decoder, self.starts = model.decoder, model.starts
        self.scale, self.position = model.scale, position
        self.register_buffer("code_tables", code_tables)

    def forward(self, codes: Tensor, *said: Tensor) -> Tensor:
        """See `StepProgram`: (B, W, K + 1) of (B, W, r) codes."""
        keys, values, present = said
        memory = Memory(keys.unbind(1), values.unbind(1), present[:, None, None])
        rows = [self.code_tables[r][codes[:, :, r]] for r in range(self.position)]
        first = self.starts.new_zeros(*codes.shape[:2], self.starts.shape[1])
        token = torch.stack([first, *rows], dim=2) + self.starts[: self.position + 1]
        state = self.decoder.last_of_beams(token, memory)
        unit = normalize(self.code_tables[self.position], dim=-1)
        return log_softmax(normalize(state, dim=-1) @ unit.T * self.scale, dim=-1)


@final
class Tiger(Retriever[TigerConfig]):
    """Predicts codes one after another, so that no item has a score of its own: lists are a beam's."""

    needs = Needs(codes="alone", rows="sliding", one_target=True, beam=True)
    scores_catalogue = False

    def build(self, items: ItemTokens, frame: Frame) -> TigerModel:
        """See `Retriever`."""
        return TigerModel(items, self.config, frame.loss, max_len=frame.max_len)
