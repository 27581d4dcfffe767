"""The command line with faults built in, for tests of what becomes of the other ranks.

`FAULTS` is a JSON list. Of each, `at` names a function as `module:name` or `module:Class.name`, `call` which
of its calls is meant (from 1), `rank` on which rank (-1: all), `do` what happens there before it, `attempts`
in which restarts of torchrun.
"""

import importlib
import json
import os
import signal
import sys
from typing import Any

from trec_semid.cli import main as cli
from trec_semid.core.errors import DataError


def refuse() -> None:
    raise DataError("ratings are no numbers", file="x.csv", row=7)


DEEDS = {
    "refuse": refuse,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "term-launcher": lambda: os.kill(os.getppid(), signal.SIGTERM),
    "kill-launcher": lambda: os.kill(os.getppid(), signal.SIGKILL),
    "note": lambda: sys.stderr.write(f"process {os.getpid()} is here\n"),
}


def build_in(fault: dict[str, Any]) -> None:
    module, _, names = fault["at"].partition(":")
    *path, name = names.split(".")
    owner: Any = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    before, calls = getattr(owner, name), 0

    def faulty(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fault.get("call", 1):
            DEEDS[fault["do"]]()
        return before(*args, **named)

    setattr(owner, name, faulty)


if __name__ == "__main__":
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    for fault in json.loads(os.environ["FAULTS"]):
        if fault["rank"] in (-1, int(os.environ.get("RANK", "0"))) and attempt in fault.get("attempts", [0]):
            build_in(fault)
    cli.main()
