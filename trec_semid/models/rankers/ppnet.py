"""PPNet: a ranker whose every layer is personalised by gates over prior features.

Legend: B rows, F features, D table width, W = main input width.
"""

import difflib
from collections.abc import Sequence
from typing import Literal, final

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from trec_semid.core.errors import ConfigError
from trec_semid.core.shapes import expect_shape
from trec_semid.data.features import Feature
from trec_semid.layers.gates import GateUnit
from trec_semid.layers.pooling import PickPieces, Piece
from trec_semid.models.ranker import DenseRanker, RankerConfig


class PpnetConfig(RankerConfig):
    """Sizes and choices of PPNet."""

    kind: Literal["ppnet"] = "ppnet"
    layer_dims: list[PositiveInt] = Field([256, 128, 64], min_length=1)
    """Widths of the hidden layers; one linear unit follows."""
    gate_dim: PositiveInt = 64
    """Hidden width of every gate unit."""
    gate: Literal["gate_input", "gate_output"] = "gate_input"
    """`gate_input`: gates multiply every layer's input, the embeddings included (the paper);
    `gate_output`: gates multiply every hidden layer's activations (as in FuxiCTR)."""
    gamma: float = Field(2.0, gt=0)
    """Largest gate."""
    priors: list[str] = []
    """Features that the gates read besides the user ID and the item's own IDs and codes."""
    code_fusion: Literal["concat", "sum"] = "concat"
    """How the vectors of one semantic ID's codes become one: side by side, or added."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on hidden activations."""


@final
class Ppnet(DenseRanker):
    """Parameter-personalised network for one task.

    H_1 = main input; delta_l = GateUnit_l(prior (+) sg(main)); O_l = delta_l * H_l;
    H_{l+1} = relu(W_l O_l + b_l); logit = w O_{L+1} + b.
    Source: Chang et al., "PEPNet", KDD 2023, PPNet; one domain and one task, so without EPNet. With
    `gate_output` delta_l multiplies H_2..H_{L+1} only. Main input: all features; prior: user ID and
    the target item's ID and codes. The gates send no gradient into the main input, but into the priors.
    """

    def __init__(self, config: PpnetConfig, features: Sequence[Feature], table_dim: int) -> None:
        super().__init__()
        self.config = config
        priors = _prior_names(features, config)
        self.main = PickPieces(_pieces(features, {feature.name for feature in features}, config), table_dim)
        self.prior = PickPieces(_pieces(features, priors, config), table_dim)
        self.num_columns = len(features) * table_dim
        main_dim, prior_dim = self.main.out_dim, self.prior.out_dim
        input_dims = [main_dim, *config.layer_dims]
        gated_dims = input_dims if config.gate == "gate_input" else config.layer_dims
        self.gates = nn.ModuleList(
            GateUnit(main_dim + prior_dim, config.gate_dim, dim, gamma=config.gamma) for dim in gated_dims
        )
        self.layers = nn.ModuleList(
            nn.Linear(fan_in, fan_out)
            for fan_in, fan_out in zip(input_dims, [*config.layer_dims, 1], strict=True)
        )
        self.dropout = nn.Dropout(config.dropout)

    @property
    def gate_units(self) -> list[GateUnit]:
        """Its gates, in the order of what they multiply."""
        return [gate for gate in self.gates if isinstance(gate, GateUnit)]

    def forward(self, embedded: Tensor) -> Tensor:
        """Return (B,) logits of (B, F * D) embedded features."""
        expect_shape(embedded, "B W", "embedded", W=self.num_columns)
        hidden = self.main(embedded)
        gate_input = torch.cat([self.prior(embedded), hidden.detach()], dim=1)
        return self.gated(hidden, [gate(gate_input) for gate in self.gates])

    def gated(self, hidden: Tensor, gates: list[Tensor]) -> Tensor:
        """Return (B,) logits of the main input (B, W) and what the gates say of it."""
        # The first gate is that of the input: with it taken out, gate l is the one after layer l.
        if self.config.gate == "gate_input":
            hidden = hidden * gates.pop(0)
        # There is a layer more than gates: the last one, which makes the logit and is not gated.
        for layer, gate in zip(self.layers, gates, strict=False):
            hidden = self.dropout(torch.relu(layer(hidden)) * gate)
        return self.layers[-1](hidden).squeeze(1)

    def of_requests(self, is_shared: Sequence[bool]) -> nn.Module | None:
        """See `DenseRanker`: what gates read first is a sum of a part of the request and one of the row."""
        return RequestPpnet(self, is_shared) if any(is_shared) and not all(is_shared) else None


@final
class RequestPpnet(nn.Module):
    """PPNet whose gates read a request once: W [u, i] = W_u u + W_i i, of all gates in one product.

    What a gate reads, priors and main input, are pieces of the embedded features and sums of such. So its
    first linear map is one of these themselves, with columns of the request and columns of the row.
    """

    def __init__(self, ranker: Ppnet, is_shared: Sequence[bool]) -> None:
        """Split the maps; see `DenseRanker.of_requests`."""
        super().__init__()
        self.ranker = ranker
        of_feature = torch.tensor(is_shared)
        shared = of_feature.repeat_interleave(ranker.num_columns // len(is_shared))
        inner = [gate.inner for gate in ranker.gate_units]
        with torch.no_grad():
            # What the pieces make of each column alone is the column's part in what they make of all.
            columns = torch.eye(ranker.num_columns)
            read = torch.cat([ranker.prior(columns), ranker.main(columns)], dim=1)
            weight = torch.cat([layer.weight for layer in inner]) @ read.T
        self.of_request = _linear(weight[:, shared], torch.cat([layer.bias for layer in inner]))
        self.of_row = _linear(weight[:, ~shared], None)
        # Where the columns of features lie behind each other, those of requests first.
        order = torch.cat([shared.nonzero(), (~shared).nonzero()]).squeeze(1)
        self.register_buffer("places", order.argsort())
        self.gate_dim = ranker.config.gate_dim

    places: Tensor

    def forward(self, shared: Tensor, own: Tensor, owners: Tensor) -> Tensor:
        """Return (B,) logits of requests (Q, S * dim), rows (B, I * dim) and their requests (B,)."""
        read = torch.relu(self.of_request(shared).index_select(0, owners) + self.of_row(own))
        embedded = torch.cat([shared.index_select(0, owners), own], dim=1).index_select(1, self.places)
        parts = zip(self.ranker.gate_units, read.split(self.gate_dim, dim=1), strict=True)
        return self.ranker.gated(self.ranker.main(embedded), [gate.open(part) for gate, part in parts])


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear map of (out, in) weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


_OWN = ("user", "item", "item_code", "item_prefix")
"""Roles of the features that gates always read."""


def _prior_names(features: Sequence[Feature], config: PpnetConfig) -> set[str]:
    names = [feature.name for feature in features]
    for name in config.priors:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean '{close[0]}'?" if close else f"There are: {', '.join(names)}."
            raise ConfigError(f"model.priors: no feature '{name}'. {hint}")
    own = {feature.name for feature in features if feature.role in _OWN}
    return own | set(config.priors)


def _pieces(features: Sequence[Feature], chosen: set[str], config: PpnetConfig) -> list[Piece]:
    """Return the chosen features as the fewest pieces; codes of one semantic ID are one when summed."""
    pieces: list[Piece] = []
    before: Feature | None = None
    for number, feature in enumerate(features):
        if feature.name not in chosen:
            continue
        is_summed = config.code_fusion == "sum" and feature.role in ("item_code", "history_code")
        # Neighbouring columns are one slice; codes that are summed join only with those of the same role.
        joins = before is not None and pieces[-1].last == number and pieces[-1].is_summed == is_summed
        if joins and (not is_summed or (before is not None and before.role == feature.role)):
            pieces[-1] = pieces[-1]._replace(last=number + 1)
        else:
            pieces.append(Piece(number, number + 1, is_summed))
        before = feature
    return pieces
