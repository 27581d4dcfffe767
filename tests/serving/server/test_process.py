"""The server as processes: signals, workers, swaps over sockets, what it says and how it ends."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.commands import start_command
from tests.serving.server.engines import STORED, expected_list, expected_rank
from tests.serving.server.test_keeping import write_bundle

pytestmark = pytest.mark.slow
RANK = {"user": "ann", "candidates": ["i1", "i2", "i3"]}


class Program:
    """A server in processes of its own."""

    def __init__(self, folder: Path, version: str, *sets: str, port: int = 0) -> None:
        self.folder = folder
        write_bundle(folder / version, version)
        self.pointer = folder / "pointer"
        self.pointer.write_text(version)
        given = [f"bundle = '{self.pointer}'", f"port = {port}", *sets]
        given += [] if any("look_every_s" in each for each in sets) else ["look_every_s = 0.05"]
        text = "\n".join(given)
        (folder / "serve.toml").write_text(text)
        self.out, self.err = folder / "out", folder / "err"
        self.process: ForkServerProcess = start_command(
            "tests.serving.server.whole_numbers",
            str(folder / "serve.toml"),
            stdout=self.out,
            stderr=self.err,
            environment=os.environ | {"COLUMNS": "400", "OMP_NUM_THREADS": "1"},
        )

    @property
    def url(self) -> str:
        found = re.search(r"http://\S+?:\d+(?=: opening)", self.said)
        assert found, self.said
        return found[0]

    @property
    def said(self) -> str:
        return self.err.read_text() if self.err.exists() else ""

    def wait_for(self, words: str) -> None:
        until(lambda: words in self.said or not self.process.is_alive())
        assert words in self.said, self.said

    def swap(self, version: str) -> None:
        write_bundle(self.folder / version, version)
        part = self.folder / "part"
        part.write_text(version)
        part.replace(self.pointer)

    def stop(self, number: int = signal.SIGTERM) -> int:
        os.kill(self.process.pid or 0, number)
        return self.end()

    def end(self) -> int:
        self.process.join(30)
        assert self.process.exitcode is not None, f"it does not end: {self.said}"
        return self.process.exitcode


class Caller:
    """A client that keeps its connection."""

    def __init__(self, url: str) -> None:
        self._connection = HTTPConnection(url.removeprefix("http://"), timeout=30)

    def __call__(self, path: str, body: Any = None) -> tuple[int, Any]:
        sent = None if body is None else json.dumps(body)
        self._connection.request("GET" if body is None else "POST", path, sent)
        answer = self._connection.getresponse()
        content = answer.read()
        is_json = answer.headers["content-type"] == "application/json"
        return answer.status, json.loads(content) if is_json else content.decode()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    late = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < late, "waited in vain"
        time.sleep(0.01)


@contextmanager
def running(folder: Path, version: str, *sets: str) -> Iterator[Program]:
    program = Program(folder, version, *sets)
    try:
        program.wait_for(": ready")
        yield program
    finally:
        if program.process.is_alive():
            program.process.kill()
            program.process.join()


def test_server_swaps_over_sockets_without_a_failed_or_mixed_answer_and_ends_well(tmp_path: Path):
    versions = [f"v{number}" for number in range(21)]
    answers: list[tuple[int, dict[str, Any]]] = []
    faults: list[BaseException] = []
    stop = threading.Event()

    def ask_on_and_on(call: Caller) -> None:
        try:
            while not stop.is_set():
                answers.append(call("/v1/rank", RANK))
                time.sleep(0.002)
        except BaseException as fault:
            faults.append(fault)

    with running(tmp_path, versions[0]) as program:
        callers = [Caller(program.url) for _ in range(8)]
        threads = [threading.Thread(target=ask_on_and_on, args=(caller,)) for caller in callers]
        for thread in threads:
            thread.start()
        for version in versions[1:]:
            program.swap(version)
            until(
                lambda: faults or (bool(answers) and answers[-1][1]["version"] == program.pointer.read_text())
            )
        stop.set()
        for thread in threads:
            thread.join()
        assert not faults
        assert program.stop() == 0, program.said
        lines = [json.loads(line) for line in program.out.read_text().splitlines()]
    assert {status for status, _ in answers} == {200}
    assert {told["version"] for _, told in answers} == set(versions)
    for _, told in answers:
        assert told["scores"] == expected_rank(told["version"], STORED["ann"], RANK["candidates"])
    assert len(lines) == len(answers)


def test_sigterm_lets_what_has_begun_finish_and_takes_nothing_more(tmp_path: Path):
    with running(tmp_path, "slow", "limits.time_s = 20") as program:
        told: list[tuple[int, Any]] = []
        late = Caller(program.url)
        assert late("/readyz")[1]["ready"]
        callers = [Caller(program.url) for _ in range(3)]
        asked = [
            threading.Thread(target=lambda call=call: told.append(call("/v1/retrieve", {"n": 4})))
            for call in callers
        ]
        for thread in asked:
            thread.start()
        time.sleep(0.2)  # the first is with the engine, the others wait
        assert program.stop() == 0, program.said
        for thread in asked:
            thread.join()
        assert [status for status, _ in told] == [200, 200, 200]
        assert all(answer["items"] == expected_list("slow", [], 4) for _, answer in told)
        with pytest.raises(OSError, match="refused"):
            Caller(program.url)("/readyz")


def test_sigterm_while_another_bundle_is_opened_ends_well(tmp_path: Path):
    with running(tmp_path, "v1") as program:
        program.swap("endless")
        time.sleep(0.5)
        assert Caller(program.url)("/v1/rank", RANK)[1]["version"] == "v1"
        assert program.stop() == 0, program.said


def test_workers_share_one_socket_count_together_and_end_together(tmp_path: Path):
    with running(tmp_path, "v1", "workers = 3") as program:
        first = psutil.Process(program.process.pid)
        workers = [child.pid for child in first.children()]
        assert len(workers) == 3
        for _ in range(40):  # a new connection each: any of them may take it
            assert Caller(program.url)("/v1/rank", RANK)[0] == 200
        page = Caller(program.url)("/metrics")[1]
        assert 'trec_semid_requests_total{route="/v1/rank",status="200"} 40.0' in page
        assert 'trec_semid_bundle{version="v1"} 3.0' in page

        # One that dies is followed by another one.
        os.kill(workers[0], signal.SIGKILL)
        until(lambda: len({child.pid for child in first.children()} - {workers[0]}) == 3)
        program.swap("v2")
        until(lambda: program.said.count("version v2 is served") == 3)
        assert {Caller(program.url)("/v1/rank", RANK)[1]["version"] for _ in range(20)} == {"v2"}
        assert 'trec_semid_bundle{version="v2"} 3.0' in Caller(program.url)("/metrics")[1]

        left = [child.pid for child in first.children()]
        assert program.stop() == 0, program.said
        until(lambda: not any(psutil.pid_exists(pid) for pid in left))


def test_workers_whose_first_process_is_killed_are_gone_within_seconds(tmp_path: Path):
    with running(tmp_path, "v1", "workers = 2") as program:
        workers = [child.pid for child in psutil.Process(program.process.pid).children()]
        assert program.stop(signal.SIGKILL) == -signal.SIGKILL
        until(lambda: not any(psutil.pid_exists(pid) for pid in workers), 20)


def test_sighup_looks_at_once_for_another_bundle_also_at_one_that_was_refused(tmp_path: Path):
    with running(tmp_path, "v1", "workers = 2", "look_every_s = 0") as program:
        program.swap("next")
        write_bundle(tmp_path / "next", "broken")
        os.kill(program.process.pid or 0, signal.SIGHUP)
        until(lambda: program.said.count("refused, version v1 stays") == 2)
        assert Caller(program.url)("/readyz")[1]["version"] == "v1"
        write_bundle(tmp_path / "next", "v2")
        time.sleep(0.2)
        assert "version v2" not in program.said
        os.kill(program.process.pid or 0, signal.SIGHUP)
        until(lambda: program.said.count("version v2 is served") == 2)
        assert program.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_bundle_that_cannot_be_opened_at_the_start_ends_it_with_the_reason(tmp_path: Path, workers: int):
    program = Program(tmp_path, "broken", f"workers = {workers}")
    assert program.end() == 2
    assert "not the file that was exported" in program.said
    assert "Traceback" not in program.said


def test_address_in_use_and_secret_that_is_missing_end_the_start_with_the_reason(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as own:
        program = Program(tmp_path / "a", "v1", port=own.getsockname()[1])
        assert program.end() == 2
        assert "Choose another" in program.said
    program = Program(tmp_path / "b", "v1", "token.file = 'nowhere'")
    assert program.end() == 2
    assert "nowhere" in program.said


def test_body_that_is_too_large_is_refused_before_it_is_sent(tmp_path: Path):
    with running(tmp_path, "v1", "limits.body_bytes = 1000") as program:
        host, port = program.url.removeprefix("http://").split(":")
        asked = b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=10) as own:
            own.sendall(asked + b"x" * 5000)
            answer = b""
            while part := own.recv(4096):
                answer += part
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer.lower()
        # The server goes on.
        assert Caller(program.url)("/v1/rank", RANK)[0] == 200
