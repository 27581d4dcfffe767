"""torchrun whose ranks are forks of it: its agent, signals and restarts are as ever, imports are not.

A rank costs 6 s of a processor until it has imported torch and torchrec; here the launcher has them already.
"""

import multiprocessing
import os
import signal
import subprocess
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from tests.commands import become
from tests.forked_server import forget_files

FORK = multiprocessing.get_context("fork")


class ForkedRank:
    """What torchrun's agent needs of a `subprocess.Popen`."""

    def __init__(self, args: tuple[str, ...], env: dict[str, str], **_: Any) -> None:
        program, *words = args[args.index("-u") + 1 :]  # python -u -m MODULE WORDS..., or of a script
        if program == "-m":
            program, *words = words
        self._process = FORK.Process(target=_be_rank, args=(program, tuple(words), env))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code once there is one."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("rank", timeout or 0)
        return self._process.exitcode


def _be_rank(program: str, words: tuple[str, ...], env: dict[str, str]) -> None:
    os.setsid()
    for number in (
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
    ):  # the agent has handlers, a new process none
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    forget_files()  # the agent's sockets
    os.environ.clear()
    os.environ.update(env)
    become(program, words)


if __name__ == "__main__":
    subprocess_handler.Popen = ForkedRank
    run.main()
