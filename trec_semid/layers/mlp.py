"""Plain multi-layer perceptron."""

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from trec_semid.core.errors import ConfigError
from trec_semid.layers.dropout import Dropout


@final
class Mlp(nn.Module):
    """Linear layers with ReLU between them: h_{i+1} = dropout(relu(W_i h_i + b_i)).

    The last layer is linear unless `activate_last`. Input (..., in_dim), output (..., widths[-1]).
    """

    def __init__(
        self, in_dim: int, widths: Sequence[int], *, dropout: float = 0.0, activate_last: bool = False
    ) -> None:
        if not widths:
            raise ConfigError(
                "Mlp: no layers (got widths = [], expected at least one). Name an output width."
            )
        super().__init__()
        self.in_dim, self.out_dim = in_dim, widths[-1]
        layers: list[nn.Module] = []
        for depth, (fan_in, fan_out) in enumerate(zip([in_dim, *widths], widths, strict=False)):
            layers.append(nn.Linear(fan_in, fan_out))
            if depth < len(widths) - 1 or activate_last:
                layers.append(nn.ReLU())
                layers += [Dropout(dropout)] if dropout > 0 else []
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_dim) to (..., widths[-1])."""
        return self.layers(x)
