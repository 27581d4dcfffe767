"""Fixtures that every room's tests may use, and the account of what each test costs."""

import faulthandler
import gc
import json
import logging
import os
import resource
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import engine

from tests.forked_server import fork_server_pid, fork_this_process

# What imports and collection make, a million objects, stays to the end. Python would look through it again
# and again, each time it has grown by a quarter; after collection it is told that these never go.
gc.disable()

# How long an example takes says how busy the machine is, not whether the code is right. Every run draws the
# same examples, so that a change is not refused for what another one did; `--hypothesis-profile thorough`
# draws other ones, and more of them where a test does not say how many.
settings.register_profile(
    "house",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", settings.get_profile("house"), derandomize=False, max_examples=1000)
settings.load_profile("house")
# What fails is made small for a minute, not for five: the rest of the tests, and their limits, wait for it.
engine.MAX_SHRINKING_SECONDS = 60


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a planted proof be repeated with other seeds and rates, and verbs be killed more often."""
    parser.addoption("--planted-seed", type=int, default=0, help="seed of the planted proof of tuning")
    parser.addoption("--planted-rate", default=None, help="its learning rate, instead of the config's")
    parser.addoption(
        "--planted-set", action="append", default=[], help="a key of its [finetune], as turn_steps=20"
    )
    parser.addoption("--kills", type=int, default=2, help="how often tests/reliability kills each verb")
    parser.addoption("--kill-seed", type=int, default=0, help="seed of the moments at which it does")
    parser.addoption("--costs", default=None, help="write processor seconds of every test to this JSON file")


_STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Let a worker's ranks and commands be forks of it, as it is before pytest's filters and threads."""
    config.stash[_STDERR] = os.dup(2)  # while tests run, the standard error is caught
    # torch tells this one of every tensor of a checkpoint, twice, and pytest would format each record thrice.
    logging.getLogger("c10d-NullHandler-dcp_logger").disabled = True
    if hasattr(config, "workerinput"):
        fork_this_process()


def pytest_collection_finish() -> None:
    """Collect garbage from now on, less often, but never look at what is there already."""
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files first that start processes or are slow: a worker that began one last would be left alone."""
    marked = {item.path for item in items for mark in ("slow", "ranks") if item.get_closest_marker(mark)}
    items.sort(key=lambda item: item.path not in marked)  # stable: files stay whole, tests in their order


_GRACE_S = 120
"""Time [s] that a test has, once it is past its limit and told so, to end what it has started."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """End this process, with all stacks, where a test neither ends nor heeds that its time is up.

    pytest-timeout raises an error once, in the main thread: what is blocked outside of Python never sees it,
    hypothesis takes it for one more failing example and shrinks on, and clearing up after it has no limit.
    """
    mark = item.get_closest_marker("timeout")
    if limit_s := float(mark.args[0] if mark else item.config.getini("timeout")):
        faulthandler.dump_traceback_later(limit_s + _GRACE_S, exit=True, file=item.config.stash[_STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _processor_s() -> float:
    """Processor time [s] of this process, its children that have ended, and the server that forks ranks."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    server = fork_server_pid()
    forked = psutil.Process(server).cpu_times()[:4] if server and psutil.pid_exists(server) else ()
    return sum(part.ru_utime + part.ru_stime for part in used) + sum(forked)


_seen_s = 0.0
_costs: dict[str, dict[str, float]] = {}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Note what was used since the phase before: wall clocks say little on a machine that others use."""
    global _seen_s
    report = yield
    used_s, _seen_s = _processor_s() - _seen_s, _processor_s()
    report.processor_s = used_s  # travels to the controller with the report, under pytest-xdist too
    return report


def pytest_runtest_logreport(report: Any) -> None:
    """Collect the phases; a worker's first set-up holds the worker's start and its imports."""
    _costs.setdefault(report.nodeid, {})[report.when] = getattr(report, "processor_s", 0.0)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the account, in the order in which the tests ended."""
    place = session.config.getoption("--costs")
    if place and not hasattr(session.config, "workerinput"):
        Path(place).write_text(json.dumps(_costs, indent=1))


@pytest.fixture(scope="session")
def study_data() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TREC_SEMID_STUDY_DATA", default))
    if not folder.is_dir():
        pytest.skip("research datasets are not here: set TREC_SEMID_STUDY_DATA to their folder")
    return folder
