"""Worker processes of a study: each stays alive and runs many jobs, so torchrec is imported once a worker."""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple, Protocol

from trec_semid.core.config import Config, load_config
from trec_semid.core.errors import ConfigError, DataError, SemidError
from trec_semid.core.paths import exists, filesystem, is_local, join, make_folder, read_bytes, write_bytes
from trec_semid.runtime.runs import RunFolder
from trec_semid.runtime.stopping import heed_parent, heeding_signals
from trec_semid.study.grid import PlannedRun
from trec_semid.tokenizers.maps.semantic_ids import FILE, holds_same_codes, semantic_ids_file


class Job(Protocol):
    """What a study must know of a verb; the jobs' own table has one for each."""

    @property
    def config(self) -> type[Config]:
        """The verb's config class."""
        ...

    @property
    def run(self) -> Callable[[Any], Any]:
        """Do what a config asks for."""
        ...

    @property
    def finished(self) -> Callable[[Any], object] | None:
        """Say truly of a config that its result is there already; None where only the run folder tells."""
        ...


FindJob = Callable[[str], Job]
"""Gives a verb's job; picklable, since workers call it."""
State = Literal["finished", "begun", "other", "absent"]
"""What a run's folder holds: this very run, a part of it, another run, or none of a study's jobs."""


class Look(NamedTuple):
    """What can be said of a planned run before it starts."""

    label: str
    fault: str | None
    state: State


class Outcome(NamedTuple):
    """How a run ended."""

    label: str
    error: str | None
    wall_s: float


class Worker:
    """A process that takes one order at a time; it is replaced when it dies."""

    def __init__(self, find_job: FindJob, number: int = 0) -> None:
        self._find_job, self._number = find_job, number
        self.order: PlannedRun | None = None
        self.began = 0.0
        self._was_asked = False
        self._start()

    def look(self, planned: list[PlannedRun]) -> None:
        """Order a check of every config; `take` returns a list of `Look`."""
        self._pipe.send(planned)

    def run(self, planned: PlannedRun, log: str) -> None:
        """Order one run, its console output going to `log`; `take` returns an `Outcome`."""
        self.order, self.began = planned, time.monotonic()
        self._pipe.send((planned, log))

    def waits_on(self) -> list[Any]:
        """Return what becomes ready when there is an answer or the process died."""
        return [self._pipe, self._process.sentinel]

    def take(self) -> Any:
        """Return the answer; a process that died answers with a failed `Outcome` and is replaced.

        Raises:
            SemidError: it died while looking at configs.
        """
        order, self.order = self.order, None
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
        how = f"killed by signal {-code}" if code < 0 else f"process ended with code {code}"
        how += " (out of memory?)" if code == -signal.SIGKILL else ""
        if order is None:
            raise SemidError(f"a study worker died at its start: {how}. Remedy: trec-semid doctor.")
        self._start()
        return Outcome(order.label, how, time.monotonic() - self.began)

    def ask_to_stop(self) -> None:
        """Ask the process to end: training saves a checkpoint, and what was half-written is cleaned up."""
        if not self._was_asked:  # a second signal would end it at once
            self._was_asked = True
            self._process.terminate()

    def stop(self, timeout_s: float) -> None:
        """End the process, gently for so long."""
        self.ask_to_stop()
        self._process.join(timeout=max(timeout_s, 0.0))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _start(self) -> None:
        # Not fork: a child would inherit this process's signal handlers, and locks that its threads hold.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._find_job, self._number))
        self._process.start()
        # While this process held that end too, a dead worker's pipe would never read as ended.
        theirs.close()


def devices_of(number: int, visible: str | None, num_devices: int) -> str | None:
    """Return what CUDA_VISIBLE_DEVICES is to be for a worker, one GPU each in turn; None without a choice.

    Args:
        number: of the worker, from 0.
        visible: what it is now.
        num_devices: GPUs of the machine, where it is not set.
    """
    devices = [name for name in visible.split(",") if name] if visible is not None else None
    named = [str(device) for device in range(num_devices)] if devices is None else devices
    return named[number % len(named)] if len(named) > 1 else None


def _serve(pipe: Connection, find_job: FindJob, number: int) -> None:
    import torch  # late: the study itself needs none of it

    own = devices_of(number, os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count())
    if own is not None:  # before anything asks the driver for a context
        os.environ["CUDA_VISIBLE_DEVICES"] = own
    heed_parent()
    with heeding_signals():
        # Ctrl-C reaches the whole group: the study decides, and ends its workers by SIGTERM, which unwinds.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            try:
                order = pipe.recv()
            except EOFError:
                return
            if isinstance(order, list):
                pipe.send([look_at(planned, find_job) for planned in order])
            else:
                pipe.send(execute(order[0], order[1], find_job))


def look_at(planned: PlannedRun, find_job: FindJob) -> Look:
    """Validate a run's config and see what its folder holds."""
    try:
        config = load_config(find_job(planned.verb).config, planned.files, planned.sets)
    except ConfigError as error:
        return Look(planned.label, str(error), "absent")
    own = find_job(planned.verb).finished
    if own is not None and own(config):
        return Look(planned.label, None, "finished")
    run = RunFolder(planned.folder, planned.verb)
    if not exists(run.path("run.json")):
        return Look(planned.label, None, "absent")
    try:
        same = run.is_of(config) and _reads_same_inputs(run, config)
    except DataError:
        same = False
    is_finished = same and own is None and run.is_finished(config)
    return Look(planned.label, None, "finished" if is_finished else "begun" if same else "other")


def _reads_same_inputs(run: RunFolder, config: Config) -> bool:
    """Return whether the dataset and the codes that the config names are still what the run read."""
    places = config.model_dump()
    data = join(str(places.get("dataset")), "dataset.json")
    read = run.read_json("run.json").get("inputs", {})
    # What is not there belongs to no step, or is about to come, and then the run is computed anew too.
    if exists(data) and json.loads(read_bytes(data)).get("checksum") != read.get("dataset"):
        return False
    codes, copy = semantic_ids_file(places.get("semantic_ids") or ""), run.path(FILE)
    if not exists(codes) or not exists(copy):
        return True
    return holds_same_codes(copy, codes, read.get("semantic_ids"))


def execute(planned: PlannedRun, log: str, find_job: FindJob) -> Outcome:
    """Run one job with its console output in a file."""
    started = time.monotonic()
    error: str | None = None
    sys.argv = ["trec-semid", *command_words(planned)]  # the command that the run folder records
    with _output_to(log):
        try:
            job = find_job(planned.verb)
            config = load_config(job.config, planned.files, planned.sets)
            job.run(config)
            if planned.verb == "report":
                _mark_report(RunFolder(planned.folder, planned.verb, started), config)
        except SemidError as refusal:
            error = str(refusal)
            sys.stderr.write(f"error: {error}\n")
        except Exception as fault:
            error = f"{type(fault).__name__}: {fault}"
            traceback.print_exc()
    return Outcome(planned.label, error, time.monotonic() - started)


def command_words(planned: PlannedRun) -> list[str]:
    """Return what a person types after `trec-semid` for this run alone."""
    if planned.verb == "report":
        values = tomllib.loads("\n".join(text for text in planned.sets if text.startswith("runs=")))
        others = [text for text in planned.sets if not text.startswith("runs=")]
        return ["report", *values["runs"], *(word for text in others for word in ("--set", text))]
    return [planned.verb, *planned.files, *(word for text in planned.sets for word in ("--set", text))]


def _mark_report(run: RunFolder, config: Config) -> None:
    """Leave in a report's folder what a run folder has, so that the next study knows what it shows."""
    run.start(config)
    run.write_metrics({}, seed=0, dataset="", dataset_checksum="", counts={})


@contextmanager
def _output_to(uri: str) -> Iterator[None]:
    """Send what this process prints, from C++ too, to a file; a remote one is written at the end."""
    make_folder(uri.rpartition("/")[0])
    originals = [os.dup(number) for number in (1, 2)]
    with open(filesystem(uri)[1], "wb") if is_local(uri) else tempfile.TemporaryFile() as target:
        try:
            for number in (1, 2):
                os.dup2(target.fileno(), number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in zip((1, 2), originals, strict=True):
                os.dup2(old, number)
                os.close(old)
            if not is_local(uri):
                target.seek(0)
                write_bytes(uri, target.read())


def log_of(out: str, planned: PlannedRun) -> str:
    """Return where a run's console output goes."""
    return join(out, "logs", f"{planned.label}.log")
