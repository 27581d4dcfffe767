"""A process that has imported everything and forks a child for each run: a run costs no imports.

Lines of JSON come in, `{"argv": [...], "log": ..., "envs": [{...}, ...]}`, one child for each of `envs`; a
line `{"pids": [...]}` goes out, and a line `{"codes": [...], "wall_s": ...}` once all children are gone.
The children are one process group, whose number is the first child's.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple


class Ended(NamedTuple):
    """How a run ended."""

    codes: list[int]
    """Exit codes by rank; minus the signal's number where one ended it."""
    wall_s: float


class Zygote:
    """The test's side."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == {"ready": True}

    def begin(self, argv: Sequence[str], log: str, envs: Sequence[Mapping[str, str]] = ({},)) -> list[int]:
        """Start `trec-semid ARGV` and return the processes of its ranks; `wait` comes next."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"argv": argv, "log": log, "envs": envs}) + "\n")
        self._process.stdin.flush()
        return self._read()["pids"]

    def wait(self) -> Ended:
        """Return how the run that was begun last ended."""
        return Ended(**self._read())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())


def serve() -> None:
    """Fork children until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    _import_all()
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        began, pids = time.monotonic(), []
        for env in order["envs"]:
            pids.append(_fork(order, env, pids[0] if pids else 0, replies.fileno()))
        print(json.dumps({"pids": pids}), file=replies, flush=True)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps({"codes": codes, "wall_s": time.monotonic() - began}), file=replies, flush=True)


def _import_all() -> None:
    from trec_semid.jobs.verbs import JOBS, job_named

    for verb in JOBS:
        job_named(verb)
    for module in ("torch.distributed.checkpoint", "torch.utils.tensorboard"):
        import_module(module)
    # Workers of a study, too, have everything imported.
    real = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: real("fork" if method == "spawn" else method)


def _fork(order: dict[str, Any], env: dict[str, str], group: int, replies: int) -> int:
    pid = os.fork()
    if pid:
        os.setpgid(pid, group or pid)
        return pid
    code = 1
    try:
        os.setpgid(0, group)
        os.close(replies)
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


if __name__ == "__main__":
    serve()
