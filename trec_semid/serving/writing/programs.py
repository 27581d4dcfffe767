"""Writes `torch.export` programs, without a pickle."""

import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from trec_semid.checkpoints.bundle_files import write_file
from trec_semid.checkpoints.manifest import ProgramFacts
from trec_semid.core.errors import ConfigError
from trec_semid.serving.writing.forms import Forms, write_compiled, write_onnx

_LOST = "fake tensor in the exported program constant's list"


def write_program(
    bundle: str,
    name: str,
    module: nn.Module,
    example: Sequence[Any],
    sizes: Sequence[Any],
    *,
    outputs: tuple[str, ...],
    forms: Forms = Forms(),  # noqa: B008 - a tuple, which nobody can change
) -> ProgramFacts:
    """Export a module that returns tensors.

    Args:
        bundle: folder.
        name: of the file, without an ending.
        module: what it computes in evaluation mode is exported.
        example: (...) inputs.
        sizes: for each of these, which of its sizes may be others.
        outputs: what it returns, by name.
        forms: in which it is written besides.

    Raises:
        ConfigError: torch cannot export it.
    """
    try:
        program = _traced(module, example, sizes)
    except Exception as error:  # torch raises as many kinds as there are reasons
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{name}: torch cannot export this model: {told}") from error
    onnx = write_onnx(bundle, f"{name}.onnx", program, example) if forms.onnx else None
    compiled = write_compiled(bundle, f"{name}.compiled.pt2", program) if forms.compiled else None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    # Examples are the only part of the file that would be a pickle.
    program._example_inputs = None  # pyright: ignore[reportPrivateUsage]
    content = io.BytesIO()
    torch.export.save(program, content)
    known = write_file(bundle, f"{name}.pt2", content.getvalue())
    return ProgramFacts(**known.model_dump(), outputs=outputs, onnx=onnx, compiled=compiled)


def _traced(module: nn.Module, example: Sequence[Any], sizes: Sequence[Any]) -> ExportedProgram:
    """Return what a module computes in evaluation mode, traced again where the tracer has lost a value.

    Once in some thousand exports torch takes a value that it has computed for a constant, and refuses its own
    program; the same module traced again is fine.
    """
    from torch._dynamo import config as tracing  # 1.5 s of a processor to import, and only to export

    for tries_left in (1, 0):
        try:
            # What torch keeps of operations in case that the same come again takes a third of the time, and
            # hardly one does where sizes are open. Strict tracing refuses named tuples and closures that it
            # need not look into.
            with torch.no_grad(), tracing.patch(fake_tensor_cache_enabled=False):
                return torch.export.export(
                    module.eval(), tuple(example), dynamic_shapes=tuple(sizes), strict=False
                )
        except RuntimeError as error:
            if not tries_left or _LOST not in str(error):
                raise
    raise AssertionError("the last try returns or raises")
