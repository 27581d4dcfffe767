"""The dense part of a ranker, compiled for training."""

import os
import shutil

import torch
from torch import nn

from trec_semid.core.errors import StackError


def expect_compiler() -> None:
    """Refuse to compile where nothing can, before a run writes anything.

    Raises:
        StackError: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")  # as torch looks for it
    if not shutil.which(compiler):
        raise StackError(
            f"train.compile: no C++ compiler here (looked for {compiler}). Remedy: install g++, name another "
            "as CXX in the environment, or set train.compile = false."
        )


def compile_dense(dense: nn.Module) -> None:
    """Let `torch.compile` make the forward and backward that a ranker's dense part has while it trains.

    Evaluation runs as before, so that every verb gives one score. Tables are left out: what torchrec
    exchanges breaks graphs. Compiled the first time that it is called, once for all sizes of a batch.

    Args:
        dense: a `DenseRanker`.
    """
    plain = dense.forward
    compiled = torch.compile(plain, dynamic=True)

    def forward(embedded: torch.Tensor) -> torch.Tensor:
        """Return (B,) logits of (B, F * dim)."""
        return (compiled if dense.training else plain)(embedded)

    # On the instance: to trace, to save and to print, it stays the module that it is.
    dense.forward = forward
