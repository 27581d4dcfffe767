"""Tiny jobs for the tests of `study`: they run in its worker processes, so they live in a module."""

import os
import signal
import time
from pathlib import Path

from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, make_folder, write_bytes
from trec_semid.jobs.verbs import Job
from trec_semid.runtime.logs import say
from trec_semid.runtime.runs import RunFolder


class MakeConfig(Config):
    out: str
    value: float = 1.0


class FakeRankConfig(Config):
    run: str
    seed: int = 0
    reads: str = ""
    gain: float = 0.1
    wobble: float = 0.0
    how: str = "work"
    sleep_s: float = 0.0


class FakeReportConfig(Config):
    out: str
    runs: list[str]


def make(config: MakeConfig) -> None:
    folder = RunFolder(config.out, "prepare")
    folder.start(config)
    folder.write_metrics({"all/value": config.value}, seed=0, dataset="d", dataset_checksum="c", counts={})


def rank(config: FakeRankConfig) -> None:
    folder = RunFolder(config.run, "rank")
    folder.start(config)
    say(f"rank starts, pid {os.getpid()} threads {os.environ.get('OMP_NUM_THREADS')}")
    os.system("echo said by a program")
    time.sleep(config.sleep_s)
    if config.how == "crash":
        raise RuntimeError("it broke")
    if config.how == "refuse":
        raise DataError("bad row", file="x.csv", row=3)
    if config.how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    score = config.gain + (0.01 + config.wobble) * config.seed
    folder.write_metrics({"test/auc": score}, seed=config.seed, dataset="d", dataset_checksum="c", counts={})
    write_bytes(folder.path("pid"), str(os.getpid()).encode())


def report(config: FakeReportConfig) -> None:
    make_folder(config.out)
    write_bytes(join(config.out, "report.html"), "\n".join(Path(run).name for run in config.runs).encode())


def find(verb: str) -> Job:
    return {
        "prepare": Job(MakeConfig, make),
        "rank": Job(FakeRankConfig, rank),
        "tokenize": Job(FakeRankConfig, rank),
        "report": Job(FakeReportConfig, report),
    }[verb]
