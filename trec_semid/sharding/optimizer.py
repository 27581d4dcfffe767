"""The optimizer of embedding tables, which runs inside the backward pass."""

from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from trec_semid.core.config import Config


class SparseOptimizerConfig(Config):
    """How rows of tables are updated.

    row_wise_adagrad: h_r ← h_r + mean(g_r²), w_r ← w_r - η g_r / (√h_r + ε), one h per row.
    adagrad: the same with one h per number. sgd: w_r ← w_r - η g_r. adam: Kingma and Ba, 2015, without
    decay; on CPU for tables placed data_parallel alone, which is where they are then placed. Replicated
    tables move all rows in every step, sharded ones (GPU) those that were read.
    Source: Duchi, Hazan, Singer, Adaptive Subgradient Methods, 2011; row-wise as in torchrec.
    """

    kind: Literal["row_wise_adagrad", "adagrad", "adam", "sgd"] = "row_wise_adagrad"
    learning_rate: PositiveFloat = 0.02
    eps: float = Field(1e-8, gt=0)

    @property
    def is_row_wise(self) -> bool:
        """Whether rows share their state, so that splitting a table by columns makes another optimizer."""
        return self.kind == "row_wise_adagrad"

    def is_replicated_only(self, device: str) -> bool:
        """Whether this device has it for replicated tables alone."""
        return self.kind == "adam" and device == "cpu"

    @property
    def torch_class(self) -> type[torch.optim.Optimizer]:
        """The class that names this update to torchrec."""
        kinds: dict[str, type[torch.optim.Optimizer]] = {
            "row_wise_adagrad": RowWiseAdagrad,
            "adagrad": torch.optim.Adagrad,
            "adam": torch.optim.Adam,
            "sgd": torch.optim.SGD,
        }
        return kinds[self.kind]

    def arguments(self) -> dict[str, Any]:
        """Return fresh keyword arguments of that class; torchrec changes the ones it is given."""
        return (
            {"lr": self.learning_rate} if self.kind == "sgd" else {"lr": self.learning_rate, "eps": self.eps}
        )
