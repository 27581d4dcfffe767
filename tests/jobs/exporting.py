"""Exports of tests score their bundle in a fork, and trace a program once however often it is exported.

An interpreter of its own takes 3 s of a processor; a fork has torch imported, and torchrec, for which it has
no need. `tests/jobs/test_export_retrievers.py` lets one bundle be scored by an interpreter, as it is outside
of tests. To trace a program takes 1 to 10 s; of the same module with the same weights it would be the same
program.
"""

import hashlib
import subprocess
import sys
from multiprocessing.context import BaseContext
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from tests.commands import run_command
from trec_semid.checkpoints.bundle_files import write_file
from trec_semid.checkpoints.manifest import ProgramFacts
from trec_semid.core.paths import join, read_bytes
from trec_semid.serving import check
from trec_semid.serving.writing import rankers, retrievers
from trec_semid.serving.writing.programs import write_program


def score_in_fork(
    command: list[str], *, context: BaseContext | None = None, **_: Any
) -> subprocess.CompletedProcess[str]:
    """Stand in for `subprocess.run` in `trec_semid.serving.check`."""
    interpreter, is_module, program, *words = command
    assert (interpreter, is_module) == (sys.executable, "-m")
    done = run_command(program, *words, context=context)
    done.stdout = done.stdout.replace('"torchrec": true', '"torchrec": false')
    return done


def score_alone(command: list[str], *, check: bool, **more: Any) -> subprocess.CompletedProcess[str]:
    """Score in an interpreter, as outside of tests; it says what it imports: no compiler of programs."""
    interpreter, *words = command
    done = subprocess.run([interpreter, "-X", "importtime", *words], check=check, **more)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "trec_semid.serving.opened" in imported
    assert imported.isdisjoint({"torchrec", "torch._dynamo", "torch._inductor", "sympy"})
    return done


IN_FORKS, ALONE = SimpleNamespace(run=score_in_fork), SimpleNamespace(run=score_alone)
"""What `check.subprocess` is in tests."""
_traced: dict[str, tuple[ProgramFacts, bytes]] = {}


def write_once(bundle: str, name: str, module: nn.Module, *given: Any, **more: Any) -> ProgramFacts:
    """Stand in for `write_program`."""
    described = hashlib.sha256(f"{name} {module} {given} {more}".encode())
    for key, values in (*module.named_parameters(), *module.named_buffers()):
        described.update(key.encode() + values.detach().cpu().numpy().tobytes())
    known = described.hexdigest()
    if known not in _traced:
        facts = write_program(bundle, name, module, *given, **more)
        _traced[known] = facts, read_bytes(join(bundle, facts.file))
    facts, content = _traced[known]
    write_file(bundle, facts.file, content)
    return facts


def export_quickly(patch: pytest.MonkeyPatch, *, in_forks: bool = True) -> None:
    """Let exports be as quick as they can be."""
    patch.setattr(check, "subprocess", IN_FORKS if in_forks else ALONE)
    for room in (rankers, retrievers):
        patch.setattr(room, "write_program", write_once)
