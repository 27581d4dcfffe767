"""The dense part of a ranker, compiled for training."""

import os
import shutil

import torch
from torch import nn

from trec_semid.core.errors import ConfigError

_COMPILERS = ("g++", "clang++")


def compile_dense(dense: nn.Module) -> None:
    """Let `torch.compile` make the forward and backward that a ranker's dense part has while it trains.

    Evaluation runs as before, so that every verb gives one score. Tables are left out: what torchrec
    exchanges breaks graphs. Compiled the first time that it is called, once for all sizes of a batch.

    Args:
        dense: a `DenseRanker`.

    Raises:
        ConfigError: there is no C++ compiler.
    """
    named = [os.environ["CXX"]] if os.environ.get("CXX") else list(_COMPILERS)
    if not any(map(shutil.which, named)):
        raise ConfigError(
            f"train.compile: torch compiles with a C++ compiler, and there is none (looked for "
            f"{', '.join(named)}). Install one, or set train.compile = false."
        )
    plain, compiled = dense.forward, torch.compile(dense.forward, dynamic=True)

    def forward(embedded: torch.Tensor) -> torch.Tensor:
        """Return (B,) logits of (B, F * dim)."""
        return (compiled if dense.training else plain)(embedded)

    # On the instance: to trace, to save and to print, it stays the module that it is.
    dense.forward = forward
