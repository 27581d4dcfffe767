"""Optimizers of dense parameters and of tables, from one config."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from trec_semid.core.config import Config
from trec_semid.sharding.apply import dense_parameters, replicated_table_optimizer
from trec_semid.sharding.optimizer import SparseOptimizerConfig

_Decay = Annotated[float, Field(ge=0, lt=1)]


class DenseOptimizerConfig(Config):
    """AdamW over everything that is not a table."""

    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    eps: float = Field(default=1e-8, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate grows linearly from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """`cosine` falls to 0 at the last step of the last epoch."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest gradient norm of the dense parameters; no clipping where not given."""


class OptimizersConfig(Config):
    """Both optimizers."""

    dense: DenseOptimizerConfig = DenseOptimizerConfig()
    tables: SparseOptimizerConfig = SparseOptimizerConfig.model_validate({})


class Updates(NamedTuple):
    """What is stepped after backward; sharded tables are updated inside it."""

    dense: torch.optim.Optimizer
    replicated: torch.optim.Optimizer | None
    """Of tables placed data_parallel, with the arithmetic of the fused optimizer; None without any."""
    config: DenseOptimizerConfig
    total_steps: int
    """Length of the schedule."""

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return those that are there."""
        return [self.dense] if self.replicated is None else [self.dense, self.replicated]


def build_updates(
    model: DistributedModelParallel,
    config: OptimizersConfig,
    *,
    total_steps: int,
    own_rates: Mapping[str, float] | None = None,
) -> Updates:
    """Return the optimizers of a sharded model.

    Args:
        model: sharded.
        config: of tables and of everything else.
        total_steps: length of the schedule.
        own_rates: path of a sub-module, as `tokenizer`, to the learning rate of its weights, which do not
            decay: they start from what was learnt, not from noise.
    """
    groups = _groups(dense_parameters(model), config.dense, own_rates or {})
    dense = build_dense_optimizer(groups, config.dense)
    return Updates(dense, replicated_table_optimizer(model, config.tables), config.dense, total_steps)


def build_dense_optimizer(
    groups: Sequence[dict[str, Any]], config: DenseOptimizerConfig
) -> torch.optim.Optimizer:
    """Return AdamW in its fused form: one kernel for all parameters, on CPU and on GPU."""
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def _groups(
    weights: Mapping[str, nn.Parameter], config: DenseOptimizerConfig, own_rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: the rest first, then each sub-module that has its own rate."""
    # With dots around both, whole parts of a path match: `tokenizer`, not a name that begins like it.
    of = {name: next((path for path in own_rates if f".{path}." in f".{name}"), "") for name in weights}
    rest = [weight for name, weight in weights.items() if not of[name]]
    groups: list[dict[str, Any]] = [
        {"params": rest, "base_rate": config.learning_rate, "weight_decay": config.weight_decay}
    ]
    for path, rate in own_rates.items():
        chosen = [weight for name, weight in weights.items() if of[name] == path]
        groups.append({"params": chosen, "base_rate": rate, "weight_decay": 0.0})
    return [{**group, "lr": group["base_rate"]} for group in groups]


def forget_gradients(updates: Updates) -> None:
    """Begin a step."""
    for optimizer in updates.optimizers:
        optimizer.zero_grad(set_to_none=True)


def update(updates: Updates, step: int) -> None:
    """Update everything but sharded tables, which backward has updated.

    Args:
        updates: the optimizers.
        step: number of this step, from 1; it alone decides the dense learning rate.
    """
    factor = rate_factor(step - 1, updates.config, updates.total_steps)
    for group in updates.dense.param_groups:
        # From the base rate, not from the last rate: a run that goes on has the rates of one never stopped.
        group["lr"] = group["base_rate"] * factor
    if updates.config.clip_norm is not None:
        # Over all groups together; sharded tables are not in it, as backward has used up their gradients.
        every = [weight for group in updates.dense.param_groups for weight in group["params"]]
        torch.nn.utils.clip_grad_norm_(every, updates.config.clip_norm)
    for optimizer in updates.optimizers:
        optimizer.step()


def rate_factor(step: int, config: DenseOptimizerConfig, total_steps: int) -> float:
    """Return what multiplies the learning rate in step number `step`, counted from 0.

    Warm-up: (step + 1) / warmup_steps. Cosine: (1 + cos(pi * t)) / 2, t from 0 after warm-up to 1 at the end.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
