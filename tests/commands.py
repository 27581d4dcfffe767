"""Commands in processes of their own that import nothing: forked from the server of the ranks.

Use them where the process is what is tested (exit codes, signals, what it leaves); a new interpreter costs
6 s of a processor until it has imported torch and torchrec. Where that itself is tested, start one.
"""

import os
import random
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.context import BaseContext, ForkServerProcess
from pathlib import Path

from tests.ranks import fork_server


def start_command(
    program: str,
    *words: str,
    stdout: Path,
    stderr: Path,
    environment: Mapping[str, str] = os.environ,
    folder: str | None = None,
    context: BaseContext | None = None,
) -> ForkServerProcess:
    """Start `python -m PROGRAM WORDS...`, or `python PROGRAM WORDS...` of a script.

    Output is appended to files. `exitcode` of what is returned is, after `join`, that of the command; minus
    the number of the signal that ended it. `context` makes the process, where it is not the server of the
    ranks.
    """
    asked = (program, words, str(stdout), str(stderr), dict(environment), folder or os.getcwd())
    process = (context or fork_server()).Process(target=_be_command, args=asked)
    process.start()
    return process


def run_command(
    program: str,
    *words: str,
    environment: Mapping[str, str] = os.environ,
    folder: str | None = None,
    context: BaseContext | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run such a command to its end, as `subprocess.run` would."""
    with tempfile.TemporaryDirectory(prefix="command-") as scratch:
        out, err = Path(scratch, "out"), Path(scratch, "err")
        process = start_command(
            program,
            *words,
            stdout=out,
            stderr=err,
            environment=environment,
            folder=folder,
            context=context,
        )
        process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


def _be_command(
    program: str, words: tuple[str, ...], stdout: str, stderr: str, environment: dict[str, str], folder: str
) -> None:
    for target, place in ((1, stdout), (2, stderr)):
        file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    become(program, words)


def become(program: str, words: tuple[str, ...]) -> None:
    """Run a module or a script as the main program of this process."""
    sys.argv = [program, *words]
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def free_port() -> str:
    """Return a port that the system gives to nobody who asks for any before the launcher takes it."""
    for port in random.sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.create_server(("localhost", port)):
            return str(port)
    raise AssertionError("no free port")
