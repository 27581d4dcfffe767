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

    def forward(self, embedded: Tensor) -> Tensor:
        """Return (B,) logits of (B, F * D) embedded features."""
        expect_shape(embedded, "B W", "embedded", W=self.num_columns)
        hidden = self.main(embedded)
        gate_input = torch.cat([self.prior(embedded), hidden.detach()], dim=1)
        gates = [gate(gate_input) for gate in self.gates]
        # The first gate is that of the input: with it taken out, gate l is the one after layer l.
        if self.config.gate == "gate_input":
            hidden = hidden * gates.pop(0)
        # There is a layer more than gates: the last one, which makes the logit and is not gated.
        for layer, gate in zip(self.layers, gates, strict=False):
            hidden = self.dropout(torch.relu(layer(hidden)) * gate)
        return self.layers[-1](hidden).squeeze(1)


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
