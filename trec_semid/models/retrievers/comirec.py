"""ComiRec: several interests a user, by self-attention or by dynamic routing over the history.

Legend: B rows, L longest history, F tokens of an item, M interests, D width.
"""

import math
from typing import Literal, final

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from trec_semid.core.config import faults_of_unread
from trec_semid.layers.attention import Transformer, TransformerConfig
from trec_semid.layers.dropout import Dropout
from trec_semid.layers.prefixes.pooling import causal_softmax_pooling
from trec_semid.layers.prefixes.routing import causal_routing, whole_routing
from trec_semid.models.interests import InterestExtractor, MultiInterestModel
from trec_semid.models.item_tokens import ItemTokens
from trec_semid.models.retriever import Frame, Needs, Retriever, RetrieverConfig

_MAP_NOISE = 0.3
"""Length of what interests' maps of a vector differ by at the start, as a share of its length."""


class ComirecConfig(RetrieverConfig):
    """Cen et al., "Controllable Multi-Interest Framework for Recommendation" (ComiRec), KDD 2020."""

    kind: Literal["comirec"] = "comirec"
    extractor: Literal["attention", "routing"] = "attention"
    """`attention` is ComiRec-SA, `routing` ComiRec-DR."""
    num_interests: PositiveInt = 4
    """M; with 1 a single vector that is pooled likewise."""
    hidden_dim: PositiveInt | None = None
    """Of the attention; four times the width where not given."""
    routing_iterations: PositiveInt = 3
    transformer: TransformerConfig | None = None
    """Where given, interests are of the states of a causal transformer; else of the items themselves, as
    published."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of what is read; none as published."""


@final
class ComirecExtractor(InterestExtractor):
    """Interests of every prefix of a history, of the items x_t or of a transformer's states.

    attention: a_tm = [W2 tanh(W1 (x_t + pos_t))]_m; u_m at place t = softmax over s <= t of a_sm, times x_s.
    routing: x_tm = W_tm x_t, a map for each place and interest; capsules of the prefix
    (`layers.prefixes.routing`). Both predict at every place. The published code does at the last one alone,
    and there they are the published model. Source: ComiRec, section 3.2, and its code.
    """

    def __init__(self, config: ComirecConfig, *, max_len: int, dim: int) -> None:
        super().__init__()
        self.num_interests, self.num_iterations = config.num_interests, config.routing_iterations
        self.drop = Dropout(config.dropout)
        self.scale = math.sqrt(dim)
        self.transformer = Transformer(dim, config.transformer) if config.transformer else None
        self.routes = config.extractor == "routing"
        if self.transformer or not self.routes:
            self.places = nn.Parameter(torch.randn(max_len, dim) * 0.02)
        if self.routes:
            # Near the identity, so that capsules are in the space of items from the first step. Drawn around
            # 0, as published, they have to be turned there first, for every place and interest by itself.
            noise = torch.randn(max_len, config.num_interests, dim, dim) * (_MAP_NOISE / math.sqrt(dim))
            self.maps = nn.Parameter(torch.eye(dim) + noise)
        else:
            hidden = config.hidden_dim or 4 * dim
            self.hidden = nn.Linear(dim, hidden)
            self.attend = nn.Linear(hidden, config.num_interests, bias=False)
            nn.init.xavier_uniform_(self.hidden.weight)
            nn.init.zeros_(self.hidden.bias)
            nn.init.xavier_uniform_(self.attend.weight)

    def forward(self, histories: Tensor) -> Tensor:
        """Return interests (B, L, M, D) from (B, L, F, D)."""
        values = self._values(histories)
        if self.routes:
            return causal_routing(self._mapped(values), self.num_iterations)
        return causal_softmax_pooling(self._scores(values), values)

    def at_end(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """See `InterestExtractor`: (B, M, D), without those of shorter prefixes of (B, L, F, D)."""
        values = self._values(histories)
        is_there = torch.arange(histories.shape[1], device=lengths.device) < lengths.unsqueeze(1)
        if self.routes:
            return whole_routing(self._mapped(values), is_there, self.num_iterations)
        scores = self._scores(values).masked_fill(~is_there.unsqueeze(2), -torch.inf)
        return scores.softmax(1).mT @ values

    def _values(self, histories: Tensor) -> Tensor:
        """Return (B, L, D): what is pooled or routed."""
        values = histories.sum(2)
        if self.transformer is None:
            return self.drop(values)
        return self.transformer(self.drop(self.scale * values + self.places[: values.shape[1]]))

    def _mapped(self, values: Tensor) -> Tensor:
        """Return (B, L, M, D): what each place says to each capsule."""
        return torch.einsum("bld,lmed->blme", values, self.maps[: values.shape[1]])

    def _scores(self, values: Tensor) -> Tensor:
        """Return (B, L, M): how much each interest looks at each place."""
        return self.attend(torch.tanh(self.hidden(values + self.places[: values.shape[1]])))


@final
class Comirec(Retriever[ComirecConfig]):
    """Learns from the loss over items alone."""

    needs = Needs(codes="read")

    @property
    def num_interests(self) -> int:
        """See `Retriever`."""
        return self.config.num_interests

    @property
    def can_be_taught(self) -> bool:
        """See `Retriever`: the interest that likes an item best is taught what the teacher says of it."""
        return True

    def faults(self, frame: Frame) -> list[str]:
        """See `Retriever`: each extractor has settings of its own."""
        if self.config.extractor == "attention":
            key, because, other = "routing_iterations", "attention has no iterations", "routing"
        else:
            key, because, other = "hidden_dim", "routing has no hidden layer", "attention"
        otherwise = f"set model.extractor = '{other}'"
        return [*super().faults(frame), *faults_of_unread(self.config, "model", [key], because, otherwise)]

    def build(self, items: ItemTokens, frame: Frame) -> MultiInterestModel:
        """See `Retriever`."""
        extractor = ComirecExtractor(self.config, max_len=frame.max_len, dim=frame.dim)
        return MultiInterestModel(items, extractor, frame.loss)
