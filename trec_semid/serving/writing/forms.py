"""Other forms of a program: ONNX for other runtimes, and code compiled for one kind of processor.

Either stands beside the portable program, which stays: what cannot be had in a form is told, and left out.
"""

import logging
import shutil
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from trec_semid.checkpoints.bundle_files import write_file
from trec_semid.checkpoints.manifest import CompiledFacts, FileFacts
from trec_semid.core.errors import StackError
from trec_semid.serving.programs import this_processor

_log = logging.getLogger(__name__)
_CLOSE = 1e-4
"""Largest difference of an ONNX program's numbers to torch's."""
_COMPILED_ALONE = {"cpp_cache_precompile_headers": False}
"""Headers precompiled take 10 s and 300 MB of disk, more than the few programs of a bundle save."""
_COMPILERS = ("g++", "c++", "clang++")


class Forms(NamedTuple):
    """Which forms are asked for."""

    onnx: bool = False
    compiled: bool = False

    def expect_available(self) -> None:
        """Refuse before anything is written.

        Raises:
            StackError: what a form takes is not installed.
        """
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]
        if self.onnx and missing:
            raise StackError(
                f"onnx: {', '.join(missing)} not installed. Remedy: pip install 'trec-semid[onnx]', or set "
                "onnx = false."
            )
        if self.compiled and not any(map(shutil.which, _COMPILERS)):
            raise StackError("compiled: no C++ compiler here. Remedy: install g++, or set compiled = false.")


def write_onnx(
    bundle: str, name: str, program: ExportedProgram, example: Sequence[Tensor]
) -> FileFacts | None:
    """Write a program as ONNX; None where an operation of it is not there, or it computes something else.

    Args:
        bundle: folder.
        name: of the file.
        program: as exported.
        example: (...) inputs.
    """
    try:
        # Without printed progress: it is one of many programs.
        converted: Any = torch.onnx.export(program, dynamo=True, verbose=False)
        content: bytes = converted.model_proto.SerializeToString()
        difference = _onnx_difference(content, program, example)
    except Exception as error:  # as many kinds as there are reasons
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        _log.warning("%s: not written: %s", name, told)
        return None
    if not difference <= _CLOSE:
        _log.warning("%s: not written: it computes numbers that are %.1e off", name, difference)
        return None
    return write_file(bundle, name, content)


@torch.no_grad()
def _onnx_difference(content: bytes, program: ExportedProgram, example: Sequence[Tensor]) -> float:
    """Return how far ONNX is from torch: at the example, and for twice as many rows of random numbers."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    # An input of no numbers, such as no codes so far, is left out of the graph.
    generator, module = torch.Generator().manual_seed(0), program.module()
    differences: list[float] = []
    for inputs in (example, [_more_rows(each, generator) for each in example]):
        expected: Any = module(*inputs)
        of_torch = [expected] if isinstance(expected, Tensor) else list(expected)
        given = {key: each.numpy() for key, each in zip(_names(program), inputs, strict=True) if key in names}
        answered = session.run(None, given)
        differences += [
            float(np.abs(one - other.numpy()).max(initial=0.0))
            for one, other in zip(answered, of_torch, strict=True)
        ]
    return max(differences)


def _names(program: ExportedProgram) -> list[str]:
    return [str(name) for name in program.graph_signature.user_inputs]


def _more_rows(example: Tensor, generator: torch.Generator) -> Tensor:
    """Return twice the rows: random numbers, or the whole numbers of the example again."""
    if example.is_floating_point():
        shape = (2 * example.shape[0], *example.shape[1:])
        return torch.randn(shape, generator=generator)
    return torch.cat([example, example])


def write_compiled(bundle: str, name: str, program: ExportedProgram) -> CompiledFacts | None:
    """Write a program as machine code (AOTInductor); None where it cannot be compiled.

    Args:
        bundle: folder.
        name: of the file.
        program: as exported.
    """
    # torch documents it under this name; it takes 1.5 s of a processor to import.
    from torch._inductor import aoti_compile_and_package

    with tempfile.TemporaryDirectory() as scratch:
        place = str(Path(scratch, "compiled.pt2"))
        try:
            aoti_compile_and_package(program, package_path=place, inductor_configs=_COMPILED_ALONE)
        except Exception as error:
            told = (str(error).strip().splitlines() or [type(error).__name__])[0]
            _log.warning("%s: not written: %s", name, told)
            return None
        known = write_file(bundle, name, Path(place).read_bytes())
    return CompiledFacts.model_validate({**known.model_dump(), **this_processor()})
