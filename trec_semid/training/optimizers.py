"""Optimizers of dense parameters and of tables, from one config."""

import math
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer, KeyedOptimizerWrapper

from trec_semid.core.config import Config
from trec_semid.sharding.apply import dense_parameters, replicated_table_optimizer
from trec_semid.sharding.optimizer import SparseOptimizerConfig


class DenseOptimizerConfig(Config):
    """AdamW over everything that is not a table."""

    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate grows linearly from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """`cosine` falls to 0 at the last step of the last epoch."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest gradient norm of the dense parameters; no clipping where not given."""


class OptimizersConfig(Config):
    """Both optimizers."""

    dense: DenseOptimizerConfig = DenseOptimizerConfig()
    tables: SparseOptimizerConfig = SparseOptimizerConfig()


class Updates(NamedTuple):
    """What is stepped after backward; sharded tables are updated inside it."""

    dense: KeyedOptimizer
    replicated: torch.optim.Optimizer | None
    """Of tables placed data_parallel, with the arithmetic of the fused optimizer; None without any."""
    schedule: LambdaLR
    """Of the dense learning rate."""
    clip_norm: float | None
    """Largest gradient norm of dense parameters."""


def build_updates(model: DistributedModelParallel, config: OptimizersConfig, *, total_steps: int) -> Updates:
    """Return the optimizers of a sharded model, with their state allocated, so that it can be loaded."""
    dense = build_dense_optimizer(dense_parameters(model), config.dense)
    schedule = LambdaLR(dense, lambda step: rate_factor(step, config.dense, total_steps))
    replicated = replicated_table_optimizer(model, config.tables)
    return Updates(dense, replicated, schedule, config.dense.clip_norm)


def build_dense_optimizer(
    parameters: dict[str, nn.Parameter], config: DenseOptimizerConfig
) -> KeyedOptimizer:
    """Return AdamW in its fused form: one kernel for all parameters, on CPU and on GPU."""

    def adamw(params: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            params,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    return KeyedOptimizerWrapper(parameters, adamw)


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
