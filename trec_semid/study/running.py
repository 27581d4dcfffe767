"""Runs what a study has planned: workers, a look at every config before anything starts, runs handed out."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait

from trec_semid.core.errors import ConfigError
from trec_semid.core.paths import exists, join, remove
from trec_semid.runtime.locks import holder_of
from trec_semid.runtime.own_folder import locked_folder
from trec_semid.runtime.stopping import GRACE_S, heeding_signals
from trec_semid.study.grid import PlannedRun, StudyConfig
from trec_semid.study.progress import StudyProgress
from trec_semid.study.schedule import Schedule, what_to_keep
from trec_semid.study.workers import FindJob, Look, Worker, log_of

_log = logging.getLogger(__name__)
_STOP_S = 20.0
"""How long workers have to save and clean up; the study itself has to end some seconds later."""


@contextmanager
def started_workers(config: StudyConfig, find_job: FindJob, num_runs: int) -> Iterator[list[Worker]]:
    """Start a study's workers, and end them when the block is left: gently at first.

    Args:
        config: says how many, and how many threads each has.
        find_job: gives a verb's job.
        num_runs: no more workers than these are started.
    """
    workers: list[Worker] = []
    # Workers inherit these: torch reads the first when it is imported, rich the second, for the logs.
    environment = {"OMP_NUM_THREADS": str(config.threads), "COLUMNS": "120"}
    with heeding_signals(), _environment(environment):
        try:
            workers += [Worker(find_job, number) for number in range(min(config.workers, num_runs))]
            yield workers
        finally:
            for worker in workers:
                # All are asked before any is waited for: they have one deadline together.
                worker.ask_to_stop()
            until = time.monotonic() + _STOP_S
            for worker in workers:
                worker.stop(until - time.monotonic())


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ |= values
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ |= {} if value is None else {name: value}


def look_at_all(planned: list[PlannedRun], workers: list[Worker]) -> list[Look]:
    """Validate every config; each worker does, and so has imported what it needs when work begins.

    Raises:
        ConfigError: configs have faults; all are listed.
    """
    for worker in workers:
        worker.look(planned)
    answers: list[list[Look]] = [worker.take() for worker in workers]
    looks = answers[0]
    pairs = zip(planned, looks, strict=True)
    faults = list(dict.fromkeys(f"step '{one.step}': {look.fault}" for one, look in pairs if look.fault))
    if faults:
        raise ConfigError(f"nothing ran, {len(faults)} configs have faults:\n" + "\n".join(faults))
    return looks


def await_orphans(planned: list[PlannedRun]) -> None:
    """Wait, for a while, until nobody works in the folders of runs any more.

    Workers of a study that was killed notice within a second that it is gone, and save before they end.
    Whoever is still there after that was started by somebody else: that run fails and names them.
    """
    until, told = time.monotonic() + GRACE_S + _STOP_S, set[str]()
    for one in planned:
        while (holder := holder_of(one.folder)) and time.monotonic() < until:
            if one.label not in told:
                told.add(one.label)
                _log.info("%s: waiting for another process to end (%s)", one.label, holder.described())
            time.sleep(0.2)


def remove_stale(planned: list[PlannedRun], looks: list[Look]) -> set[str]:
    """Remove stale folders and return the labels of the runs that are finished and stand.

    All are removed before anything is computed anew, so that a study that is killed leaves no result
    beside data it was not computed from.
    """
    finished, stale = what_to_keep(planned, looks)
    for one in stale:
        if exists(join(one.folder, "run.json")):  # only what a job of ours wrote
            _log.info("%s: removed, its config or what it reads has changed", one.label)
            with locked_folder(one.folder, "study"):
                remove(one.folder)
    _log.info("%d runs, %d of them finished already", len(planned), len(finished))
    return finished


def run_all(out: str, schedule: Schedule, waiting: list[PlannedRun], workers: list[Worker]) -> None:
    """Hand out runs until none is left, and show how they go.

    Args:
        out: the study's folder, where logs go.
        schedule: says which run is next, and is told how each ended.
        waiting: what is to be run.
        workers: do it.
    """
    with StudyProgress(waiting, len(workers)) as progress:
        while schedule.num_waiting or any(worker.order for worker in workers):
            for worker in workers:
                following = None if worker.order else schedule.next_run()
                if following:
                    worker.run(following, log_of(out, following))
                    progress.begin(following)
            busy = [worker for worker in workers if worker.order]
            # A second at most, so that the progress that is shown moves on.
            ready = wait(
                [thing for worker in busy for thing in worker.waits_on()], timeout=1.0 if busy else 0
            )
            for worker in busy:
                if any(thing in ready for thing in worker.waits_on()):
                    schedule.end(worker.take())
            for label in [label for label in schedule.outcomes if label in progress]:
                progress.end(schedule.outcomes[label], join(out, "logs", f"{label}.log"))
            progress.tick()
