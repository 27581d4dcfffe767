"""Writes `torch.export` programs, without a pickle."""

import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trec_semid.checkpoints.manifest import FileFacts, write_file
from trec_semid.core.errors import ConfigError


def write_program(
    bundle: str, name: str, module: nn.Module, example: Sequence[Tensor], sizes: Sequence[dict[int, Any]]
) -> FileFacts:
    """Export a module that returns tensors.

    Args:
        bundle: folder.
        name: of the file.
        module: what it computes in evaluation mode is exported.
        example: (...) inputs.
        sizes: for each of these, which of its sizes may be others.

    Raises:
        ConfigError: torch cannot export it.
    """
    try:
        # Strict tracing refuses named tuples and closures that it need not look into.
        program = torch.export.export(
            module.eval(), tuple(example), dynamic_shapes=tuple(sizes), strict=False
        )
    except Exception as error:  # torch raises as many kinds as there are reasons
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{name}: torch cannot export this model: {told}") from error
    # Examples are the only part of the file that would be a pickle.
    program._example_inputs = None  # pyright: ignore[reportPrivateUsage]
    content = io.BytesIO()
    torch.export.save(program, content)
    return write_file(bundle, name, content.getvalue())
