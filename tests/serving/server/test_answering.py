"""Bodies that are too large or too slow, on the level of ASGI: what is read, and what is told."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from tests.serving.server.engines import WholeNumbers, served

LIMIT = 1000


class Connection:
    """What a server sees of one request: parts that it asks for one by one."""

    def __init__(self, parts: Iterable[bytes], headers: dict[str, str], path: str = "/v1/rank") -> None:
        self._parts, self.num_read, self.sent = iter(parts), 0, list[dict[str, Any]]()
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "server": ("server", 80),
            "client": ("client", 1),
        }

    async def receive(self) -> dict[str, Any]:
        part = next(self._parts, None)
        if part is None:
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}
        self.num_read += 1
        return {"type": "http.request", "body": part, "more_body": part != b"."}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def told(self) -> Any:
        return json.loads(b"".join(message.get("body", b"") for message in self.sent[1:]))


def ask(connection: Connection, **config: Any) -> Connection:
    async def run() -> None:
        limits = {"body_bytes": LIMIT, "time_s": 0.2} | config
        async with served(WholeNumbers(), limits=limits) as server:
            await server.app(connection.scope, connection.receive, connection.send)

    asyncio.run(run())
    return connection


def endless() -> Iterable[bytes]:
    while True:
        yield b"x" * 100


def test_body_that_says_it_is_too_large_is_refused_unread():
    seen = ask(Connection(endless(), {"content-length": str(LIMIT + 1)}))
    assert (seen.status, seen.num_read) == (413, 0)
    assert seen.headers[b"connection"] == b"close"
    assert seen.told["faults"][0]["path"] == "(body)"


def test_length_that_is_no_number_is_refused_unread():
    for length in ("-5", "1e3", "9" * 5000):
        seen = ask(Connection(endless(), {"content-length": length}))
        assert (seen.status, seen.num_read) == (413, 0)


def test_body_without_a_length_is_read_no_further_than_the_limit():
    seen = ask(Connection(endless(), {"transfer-encoding": "chunked"}))
    assert (seen.status, seen.num_read) == (413, LIMIT // 100 + 1)
    assert seen.headers[b"connection"] == b"close"


def test_body_of_just_the_limit_is_read():
    body = json.dumps({"candidates": ["i1"], "user": ""}).encode()
    parts = [body.replace(b'""', b'"' + b"u" * 400 + b'"'), b" " * (LIMIT - len(body) - 401), b"."]
    assert sum(map(len, parts)) == LIMIT
    # The dot at the end makes it no JSON, which shows that it was read to there.
    seen = ask(Connection(parts, {}))
    assert (seen.status, seen.num_read) == (422, 3)
    assert "trailing characters" in seen.told["faults"][0]["problem"]


def test_body_that_does_not_come_is_not_waited_for():
    seen = ask(Connection([b'{"candidates": ['], {}))
    assert (seen.status, seen.told["error"]) == (408, "body_late")
    assert seen.headers[b"connection"] == b"close"


def test_client_that_leaves_is_noted_and_nothing_more():
    async def run() -> list[str]:
        async with served(WholeNumbers()) as server:
            connection = Connection([], {})

            async def leave() -> dict[str, Any]:
                return {"type": "http.disconnect"}

            await server.app(connection.scope, leave, connection.send)
            return server.lines

    assert [json.loads(line)["status"] for line in asyncio.run(run())] == [499]
