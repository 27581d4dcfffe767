"""Requests at a given rate, or as many as go; raw HTTP/1.1 over connections that are kept.

At a rate, requests come at random moments (a Poisson process), whether or not those before are answered: a
server that stands still is charged for all that come meanwhile. The time counts from the moment at which this
process lets a request go; that a timer of it is late, by up to a millisecond, is not the server's.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Loaded(NamedTuple):
    """What came of a load."""

    ms: np.ndarray
    """(R,) from let go to answered, of each request in the order of their answers."""
    ended_s: np.ndarray
    """(R,) when each was answered, from the beginning."""
    failed: int
    """Answers of another status than 200, and connections that broke."""
    requests_per_s: float

    def at(self, quantile: float) -> float:
        """Return a quantile of the times [ms]."""
        return float(np.quantile(self.ms, quantile))


class Connection(asyncio.Protocol):
    """One connection: a request at a time."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[int] | None = None
        self.is_open = True
        self._got, self._wanted = bytearray(), 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what to write to."""
        self.transport = transport

    def ask(self, request: bytes) -> "asyncio.Future[int]":
        """Send a request; return what becomes its status."""
        self.answered = asyncio.get_running_loop().create_future()
        self._got.clear()
        self._wanted = 0
        self.transport.write(request)  # pyright: ignore[reportAttributeAccessIssue]
        return self.answered

    def data_received(self, data: bytes) -> None:
        """Take what comes until the answer is whole."""
        self._got += data
        if not self._wanted:
            end = self._got.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._got[:end]).lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._wanted = end + 4 + int(length)
        if len(self._got) >= self._wanted and self.answered and not self.answered.done():
            self.answered.set_result(int(self._got[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        self.is_open = False
        if self.answered and not self.answered.done():
            self.answered.set_result(0)


class Client:
    """Connections to one server."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self._port, self._requests = port, requests
        self._idle: list[Connection] = []

    async def _ask(self, number: int) -> int:
        connection = self._idle.pop() if self._idle else None
        if connection is None or not connection.is_open:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, "127.0.0.1", self._port)
        status = await connection.ask(self._requests[number % len(self._requests)])
        if status:
            self._idle.append(connection)
        return status

    async def at_rate(self, rate: float, seconds: float, seed: int = 0) -> Loaded:
        """Ask at a rate [requests/s]."""
        gaps = np.random.default_rng(seed).exponential(1 / rate, size=int(rate * seconds))
        due = np.cumsum(gaps)
        ms, ended, failed = [], [], 0
        began = time.perf_counter()

        async def one(number: int) -> None:
            nonlocal failed
            let_go = time.perf_counter() - began
            status = await self._ask(number)
            now = time.perf_counter() - began
            failed += status != 200
            ms.append((now - let_go) * 1000)
            ended.append(now)

        tasks = []
        for number, moment in enumerate(due):
            if (left := moment - (time.perf_counter() - began)) > 0:
                await asyncio.sleep(left)
            tasks.append(asyncio.create_task(one(number)))
        await asyncio.gather(*tasks)
        return Loaded(np.array(ms), np.array(ended), failed, len(ms) / (time.perf_counter() - began))

    async def as_many_as_go(self, connections: int, seconds: float) -> Loaded:
        """Ask over so many connections, on each as soon as the request before is answered."""
        ms, ended, failed = [], [], 0
        began = time.perf_counter()

        async def ask_on(number: int) -> None:
            nonlocal failed
            while (asked := time.perf_counter()) - began < seconds:
                failed += await self._ask(number) != 200
                number += connections
                ended.append(time.perf_counter() - began)
                ms.append((time.perf_counter() - asked) * 1000)

        await asyncio.gather(*(ask_on(number) for number in range(connections)))
        return Loaded(np.array(ms), np.array(ended), failed, len(ms) / (time.perf_counter() - began))

    def close(self) -> None:
        """Close the connections."""
        for connection in self._idle:
            connection.transport.close()


def http(path: str, body: bytes) -> bytes:
    """Return a request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
