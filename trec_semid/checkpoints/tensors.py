"""A model and its optimizers as one flat dict of named tensors, sharded ones as they lie."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torchrec.optim.keyed import KeyedOptimizer

from trec_semid.core.errors import CheckpointError

Tensors = dict[str, Any]
"""Name to Tensor, ShardedTensor or DTensor."""


class Trainable(NamedTuple):
    """What changes while training: saved from and loaded into, in place."""

    model: nn.Module
    optimizers: Mapping[str, Optimizer] = {}
    """By a name of your choice; a sharded model's fused one is `model.fused_optimizer`."""


def named_tensors(trainable: Trainable) -> Tensors:
    """Return every tensor of a trainable under `model/<name>` or `optimizer/<name>/<parameter>/<state>`.

    Raises:
        CheckpointError: some state is not a tensor.
    """
    tensors = {f"model/{name}": value for name, value in trainable.model.state_dict().items()}
    for name, optimizer in trainable.optimizers.items():
        for parameter, state in _state_by_name(trainable.model, optimizer).items():
            for key, value in state.items():
                if value is not None:
                    tensors[f"optimizer/{name}/{parameter}/{key}"] = value
    for name, value in tensors.items():
        if not isinstance(value, (Tensor, ShardedTensor, DTensor)):
            raise CheckpointError(f"{name}: cannot be saved (got {type(value).__name__}, expected a tensor).")
    return tensors


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Return the shape of the whole tensor, all shards together."""
    return tuple(tensor.size())


def make_state(trainable: Trainable, saved: set[str]) -> None:
    """Create the optimizer state that a checkpoint holds and a fresh optimizer makes only in its first step.

    Without it that state would silently not be loaded. Parameters come out as they were.
    """
    for name, optimizer in trainable.optimizers.items():
        names = {parameter: key for key, parameter in trainable.model.named_parameters()}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        stateless = [
            p
            for p in parameters
            if p not in optimizer.state and _has_saved_state(saved, f"optimizer/{name}/{names.get(p)}/")
        ]
        if stateless:
            _step_without_effect(optimizer, parameters, stateless)


def take_over(trainable: Trainable, tensors: Tensors) -> None:
    """Let model and optimizers take over loaded tensors where these are not their own memory."""
    model = {
        name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")
    }
    trainable.model.load_state_dict(model)
    for name, optimizer in trainable.optimizers.items():
        if isinstance(optimizer, KeyedOptimizer):
            state = optimizer.state_dict()["state"]
            loaded = {
                parameter: {
                    key: tensors.get(f"optimizer/{name}/{parameter}/{key}", value)
                    for key, value in own.items()
                }
                for parameter, own in state.items()
            }
            optimizer.load_state_dict({"state": loaded})


def hyperparameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the plain numbers of each parameter group, such as the learning rate of this moment."""
    return [
        {key: value for key, value in group.items() if isinstance(value, (bool, int, float, str))}
        for group in optimizer.param_groups
    ]


def set_hyperparameters(optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    """Put back what `hyperparameters` returned."""
    for group, values in zip(optimizer.param_groups, groups, strict=False):
        group.update(values)


def _state_by_name(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    if isinstance(optimizer, KeyedOptimizer):
        return optimizer.state_dict()["state"]
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: state for parameter, state in optimizer.state.items()}


def _has_saved_state(saved: set[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in saved)


def _step_without_effect(optimizer: Optimizer, every: list[Any], stateless: list[Any]) -> None:
    before = [(parameter, parameter.detach().clone(), parameter.grad) for parameter in every]
    for parameter, _, _ in before:
        parameter.grad = None
    for parameter in stateless:
        # A step makes state only for parameters that have a gradient, be it zero.
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, value, grad in before:
        parameter.grad = grad
        with torch.no_grad():
            # Weight decay moves a parameter even where its gradient is zero.
            parameter.copy_(value)
