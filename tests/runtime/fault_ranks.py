"""Groups of ranks, one for each scenario, that run the command line with a made-up verb; prints how they end.

    python -m tests.runtime.fault_ranks

Ranks are forked from a process that has torch already, all scenarios at once: they mostly wait. Rank 0 hosts
the store, as under a launcher that is not torchrun.
"""

import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from trec_semid.cli import main as cli
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.jobs import verbs
from trec_semid.jobs.verbs import Job
from trec_semid.runtime import ranks
from trec_semid.runtime.ranks import Ranks, barrier, lone_work, process_group
from trec_semid.runtime.stopping import deferring

WORLD = 3
AT_ONCE = 8
LIMIT_S = 100.0


class Odd(BaseException):
    """What no `except Exception` sees, as torch's CheckpointException."""


def refuse() -> None:
    raise DataError("ratings are no numbers", file="x.csv", row=7)


def raise_odd() -> None:
    raise Odd("a part was not written")


def crash() -> None:
    raise RuntimeError("no such kernel")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def loop() -> None:
    while True:
        time.sleep(0.01)


def nothing() -> None:
    pass


def in_a_collective(me: Ranks) -> None:
    dist.all_reduce(torch.ones(1))


def at_work(me: Ranks) -> None:
    loop()


def in_a_collective_of_its_own(me: Ranks) -> None:
    """Of the ranks that are well: the end of the other one breaks no connection here."""
    own = dist.new_group([0, 2], use_local_synchronization=True)
    while True:
        dist.all_reduce(torch.ones(1), group=own)
        time.sleep(0.01)


class Scenario(NamedTuple):
    deed: Callable[[], None]
    on: int
    """Rank that does it; -1: all do."""
    others: Callable[[Ranks], None]
    patience_s: float = 600.0
    world_size: int = WORLD
    started: int = WORLD


SCENARIOS = {
    f"{deed.__name__} on {on}, others {others.__name__}": Scenario(deed, on, others)
    for deed, on, others in (
        (refuse, 0, in_a_collective),
        (refuse, 1, at_work),
        (raise_odd, 1, in_a_collective),
        (crash, 0, at_work),
        (crash, 1, in_a_collective),
        (terminate, 0, at_work),
        (terminate, 1, in_a_collective),
    )
}
SCENARIOS |= {
    "refuse on 1, others in_a_collective_of_its_own": Scenario(refuse, 1, in_a_collective_of_its_own),
    "refuse on all": Scenario(refuse, -1, nothing),
    "kill on 1, others in_a_collective": Scenario(kill, 1, in_a_collective),
    "kill on 1, others at_work": Scenario(kill, 1, at_work, 5.0),
    "kill on 0, others in_a_collective": Scenario(kill, 0, in_a_collective),
    "kill on 0, others at_work": Scenario(kill, 0, at_work),
    "freeze on 1, others in_a_collective": Scenario(freeze, 1, in_a_collective, 5.0),
    "freeze on 0, others in_a_collective": Scenario(freeze, 0, in_a_collective, 5.0),
    "freeze on 1, others at_work": Scenario(freeze, 1, at_work, 5.0),
    "loop on 1, others in_a_collective": Scenario(loop, 1, in_a_collective, 5.0),
    "loop on 0, others in_a_collective": Scenario(loop, 0, in_a_collective, 5.0),
    "rank 2 does not come": Scenario(nothing, -1, in_a_collective, 2.0, started=2),
}


def faulty(name: str, me: Ranks) -> None:
    barrier()
    scenario = SCENARIOS[name]
    if scenario.on in (me.rank, -1):
        scenario.deed()
    scenario.others(me)


def well(me: Ranks) -> None:
    barrier()


def long_lone_work(me: Ranks) -> None:
    with lone_work():
        if me.is_main:
            time.sleep(6)


def error_in_lone_work(me: Ranks) -> None:
    with lone_work():
        if me.is_main:
            refuse()


def stop_in_good_order(me: Ranks) -> None:
    """Every rank counts steps; a signal on one rank ends all after the same step."""
    step = 0
    with deferring():
        while not (number := ranks.signal_on_any_rank()):
            step += 1
            if step == 20 and me.rank == 1:
                terminate()
        sys.stderr.write(f"left after step {step} by {number}\n")
    raise ranks.stopping.Stopped(number)


WELL: dict[str, Callable[[Ranks], None]] = {
    "well": well,
    "long lone work": long_lone_work,
    "error in lone work": error_in_lone_work,
    "stop in good order": stop_in_good_order,
}


class NoConfig(Config):
    """A verb's config without a key."""


def run(name: str, config: NoConfig) -> None:
    for _ in range(2):  # jobs follow each other in one process
        with process_group(has_lone_work=name == "group with lone work") as me:
            if name in WELL:
                WELL[name](me)
            elif name == "group with lone work":
                if me.is_main:
                    time.sleep(6)
                barrier()
            else:
                faulty(name, me)


NAMES = [*SCENARIOS, *WELL, "group with lone work"]


def start(name: str, rank: int, port: int, log: str) -> int:
    """Fork one rank and return its process id."""
    child = os.fork()
    if child:
        return child
    scenario = SCENARIOS.get(name, Scenario(nothing, -1, in_a_collective, 2.0))
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(scenario.world_size),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TREC_SEMID_PATIENCE_S": str(scenario.patience_s),
    }
    ranks._JOIN_S = 2.0 if name == "rank 2 does not come" else 60.0
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    verbs.job_named = lambda verb: Job(NoConfig, lambda config: run(name, config))
    sys.argv = ["trec-semid", "tokenize", "/dev/null"]
    try:
        cli.main()
    except SystemExit as end:
        os._exit(int(end.code or 0))
    os._exit(99)


def main() -> None:
    ended: dict[str, dict[int, tuple[int | str, str]]] = {name: {} for name in NAMES}
    waiting, running, until = list(NAMES), {}, time.monotonic() + LIMIT_S
    with tempfile.TemporaryDirectory() as folder:
        while (waiting or any(not frozen for *_, frozen in running.values())) and time.monotonic() < until:
            while waiting and len({name for name, *_ in running.values()}) < AT_ONCE:
                begin(waiting.pop(0), folder, running)
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                name, rank, log, _ = running.pop(pid)
                ended[name][rank] = (os.waitstatus_to_exitcode(status), Path(log).read_text())
                end_frozen({pid: each for pid, each in running.items() if each[0] == name})
            time.sleep(0.01)
        for pid, (name, rank, log, _) in running.items():
            os.kill(pid, signal.SIGKILL)
            ended[name][rank] = ("hangs", Path(log).read_text())
    sys.stdout.write(json.dumps(ended))


Running = dict[int, tuple[str, int, str, bool]]
"""Process id -> scenario, rank, log, whether it freezes."""


def begin(name: str, folder: str, running: Running) -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    scenario = SCENARIOS.get(name)
    for rank in range(scenario.started if scenario else WORLD):
        log = f"{folder}/{NAMES.index(name)}-{rank}"
        freezes = scenario is not None and scenario.deed is freeze and scenario.on == rank
        running[start(name, rank, port, log)] = (name, rank, log, freezes)


def end_frozen(rest: Running) -> None:
    """Kill what is frozen once all others of its group are gone."""
    if all(freezes for *_, freezes in rest.values()):
        for pid in rest:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
