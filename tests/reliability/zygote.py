"""A process that has imported everything and forks a child for each run: a run costs no imports.

Orders come in, `{"argv": [...], "log": ..., "envs": [{...}, ...]}`, one child for each of `envs`; the
children's process numbers go out, and then their exit codes and the time they took, once all are gone. The
children are one process group, whose number is the first child's.
"""

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, NamedTuple

from tests.jobs.exporting import score_in_fork
from tests.ranks import fork_server


class Ended(NamedTuple):
    """How a run ended."""

    codes: list[int]
    """Exit codes by rank; minus the signal's number where one ended it."""
    wall_s: float


class Zygote:
    """The test's side."""

    def __init__(self) -> None:
        self._line, other_end = fork_server().Pipe()
        self._process = fork_server().Process(target=serve, args=(other_end,))
        self._process.start()
        other_end.close()

    def begin(self, argv: Sequence[str], log: str, envs: Sequence[Mapping[str, str]] = ({},)) -> list[int]:
        """Start `trec-semid ARGV` and return the processes of its ranks; `wait` comes next."""
        self._line.send({"argv": argv, "log": log, "envs": envs})
        return self._line.recv()

    def wait(self) -> Ended:
        """Return how the run that was begun last ended."""
        return self._line.recv()

    def close(self) -> None:
        """End the process."""
        self._line.close()
        self._process.join()


def serve(line: Connection) -> None:
    """Fork children until the other end is closed."""
    # Workers of a study, too, have everything imported.
    real = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: real("fork" if method == "spawn" else method)
    # So has what scores a bundle.
    score = partial(score_in_fork, context=real("fork"))
    check: Any = import_module("trec_semid.serving.check")
    check.subprocess = SimpleNamespace(run=score)
    while True:
        try:
            order = line.recv()
        except EOFError:
            return
        began, pids = time.monotonic(), []
        for env in order["envs"]:
            pids.append(_fork(order, env, pids[0] if pids else 0, line))
        line.send(pids)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        line.send(Ended(codes, time.monotonic() - began))


def _fork(order: dict[str, Any], env: dict[str, str], group: int, line: Connection) -> int:
    pid = os.fork()
    if pid:
        os.setpgid(pid, group or pid)
        return pid
    code = 1
    try:
        os.setpgid(0, group)
        line.close()
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for target in (1, 2):
            os.dup2(log, target)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ |= env
        code = _run(order["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(argv: list[str]) -> int:
    from trec_semid.cli.main import main

    sys.argv = ["trec-semid", *argv]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
