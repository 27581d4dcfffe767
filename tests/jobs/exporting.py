"""Exports of tests score their bundle in a fork: an interpreter of its own takes 4 s of a processor.

A fork has torch imported, and torchrec, for which it has no need. `tests/jobs/test_export.py` lets one bundle
be scored by an interpreter, as it is outside of tests.
"""

import subprocess
import sys
from multiprocessing.context import BaseContext
from types import SimpleNamespace
from typing import Any

from tests.commands import run_command


def score_in_fork(
    command: list[str], *, context: BaseContext | None = None, **_: Any
) -> subprocess.CompletedProcess[str]:
    """Stand in for `subprocess.run` in `trec_semid.jobs.export`."""
    interpreter, is_module, program, *words = command
    assert (interpreter, is_module) == (sys.executable, "-m")
    done = run_command(program, *words, context=context)
    done.stdout = done.stdout.replace('"torchrec": true', '"torchrec": false')
    return done


IN_FORKS = SimpleNamespace(run=score_in_fork)
"""What `export.subprocess` is in tests."""
