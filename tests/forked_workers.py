"""Test workers that are forks: what has been imported and collected once need not be in every worker.

`pytest --workers 3` gives whole files, in their order, to whichever worker is free, so that what a module
starts once is started once. A worker of pytest-xdist is a new interpreter: 15 s of a processor to begin with.
"""

import gc
import mmap
import os
import traceback
from collections.abc import Iterator
from itertools import groupby
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

import pytest
from _pytest.reports import TestReport

from tests.forked_server import fork_this_process

Tests = list[pytest.Item]


class Worker(NamedTuple):
    """One fork, as the process that it was forked from sees it."""

    process: Any
    line: Connection
    """Reports come out, places of files go in; the worker's end closes it."""
    tests: Tests
    """What it has been given and not yet told the end of."""


class ForkedWorkers:
    """Takes the place of pytest's loop over tests; the plugins of this process hear every report."""

    def __init__(self, session: pytest.Session, num_workers: int) -> None:
        self._session = session
        self._files = [list(tests) for _, tests in groupby(session.items, key=lambda test: test.path)]
        self._waiting = iter(range(len(self._files)))
        self._stopped = mmap.mmap(-1, 1)
        """Shared with the forks: once it is set each begins one more test at most."""
        self._workers = [self._fork([]) for _ in range(min(num_workers, len(self._files)))]

    def run(self) -> None:
        """Run all tests."""
        try:
            while self._workers:
                ready = wait([worker.line for worker in self._workers])
                for worker in [worker for worker in self._workers if worker.line in ready]:
                    self._heed(worker)
                if self._session.shouldfail or self._session.shouldstop:
                    self._stopped[0] = 1
        finally:
            for worker in self._workers:
                worker.process.kill()  # a job in it may heed softer signals later, or never

    def _fork(self, tests: Tests) -> Worker:
        ours, theirs = get_context("fork").Pipe()
        others = [ours, *(worker.line for worker in getattr(self, "_workers", []))]
        args = (self._session.config, self._files, tests, theirs, others, self._stopped)
        process = get_context("fork").Process(target=_be_worker, args=args)
        process.start()
        theirs.close()
        return Worker(process, ours, tests)

    def _heed(self, worker: Worker) -> None:
        """Take one message of a worker."""
        hook = self._session.config.hook
        try:
            said = worker.line.recv()
        except EOFError:
            self._bury(worker)
            return
        match said:
            case "free":
                place = next(self._waiting, None)
                worker.tests.extend([] if place is None else self._files[place])
                worker.line.send(place)
            case "ended":
                test = worker.tests.pop(0)
                hook.pytest_runtest_logfinish(nodeid=test.nodeid, location=test.location)
            case "broke", str(words):
                raise RuntimeError(f"a test worker broke:\n{words}")
            case "warned", dict(warned):
                hook.pytest_warning_recorded.call_historic(kwargs=warned)
            case report:
                report = hook.pytest_report_from_serializable(config=self._session.config, data=report)
                hook.pytest_runtest_logreport(report=report)

    def _bury(self, worker: Worker) -> None:
        """Report the test in which a worker died, if one did, and give its other tests to a new one."""
        self._workers.remove(worker)
        worker.process.join()
        if worker.tests and not self._stopped[0]:
            died, *others = worker.tests
            words = f"the process of this test ended with {worker.process.exitcode}"
            report = TestReport(died.nodeid, died.location, {}, "failed", words, "call")
            self._session.config.hook.pytest_runtest_logreport(report=report)
            self._workers.append(self._fork(others))


def run_in_forks(session: pytest.Session, num_workers: int) -> None:
    """Run the collected tests in forks of this process.

    Raises:
        pytest.Session.Failed: as many tests failed as `--maxfail` allows.
    """
    session.config._tmp_path_factory.getbasetemp()
    gc.collect()
    gc.freeze()  # a search for garbage in a fork would write to, and so copy, all that was imported
    ForkedWorkers(session, num_workers).run()
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)


class _Teller:
    """Sends what a test comes to to the process that collected."""

    def __init__(self, config: pytest.Config, line: Connection) -> None:
        self._config, self._line = config, line

    def pytest_runtest_logreport(self, report: TestReport) -> None:
        self._line.send(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_runtest_logfinish(self) -> None:
        self._line.send("ended")

    def pytest_warning_recorded(self, warning_message: Any, when: str, nodeid: str, location: Any) -> None:
        warning_message.source = None  # whatever it is, it need not pickle
        warned = {"warning_message": warning_message, "when": when, "nodeid": nodeid, "location": location}
        self._line.send(("warned", warned))


def _be_worker(
    config: pytest.Config,
    files: list[Tests],
    tests: Tests,
    line: Connection,
    lines_of_others: list[Connection],
    stopped: mmap.mmap,
) -> NoReturn:
    code = 1
    try:
        for other in lines_of_others:
            other.close()
        _have_own(config, line)
        coming = _tests_to_come(files, tests, line)
        test = next(coming, None)
        while test is not None:
            following = None if stopped[0] else next(coming, None)
            test.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
            test = following
        code = 0
    except BaseException:
        line.send(("broke", traceback.format_exc()))
    finally:
        os._exit(code)  # what the first process has open it closes itself


def _tests_to_come(files: list[Tests], tests: Tests, line: Connection) -> Iterator[pytest.Item]:
    yield from tests
    while True:
        line.send("free")
        place = line.recv()
        if place is None:
            return
        yield from files[place]


def _have_own(config: pytest.Config, line: Connection) -> None:
    """Have streams, a folder and a server of ranks that no other worker has, and no terminal."""
    gc.enable()
    plugins, folders = config.pluginmanager, config._tmp_path_factory
    reporter = plugins.unregister(plugins.getplugin("terminalreporter"))
    plugins.register(SimpleNamespace(_tw=reporter._tw), "terminalreporter")  # stacks of a timeout go there
    plugins.register(_Teller(config, line))
    capture = plugins.getplugin("capturemanager")
    capture.stop_global_capturing()
    capture.start_global_capturing()
    folders._basetemp = folders.getbasetemp() / f"w{os.getpid()}"
    folders._basetemp.mkdir(mode=0o700)
    fork_this_process()
