"""An engine of whole numbers, whose answers a loop in Python can tell exactly, and what serves it in a test.

Item i of version v has the vector of `vector(v, i)`; a user is the sum of the vectors of the history.
"""

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

import httpx
import numpy as np

from trec_semid.core.errors import DataError
from trec_semid.serving.engine import (
    AssignAnswer,
    AssignAsked,
    ItemFacts,
    NotServedError,
    RankAnswer,
    RankAsked,
    RetrieveAnswer,
    RetrieveAsked,
)
from trec_semid.serving.server.answering import Service
from trec_semid.serving.server.batching import Batcher
from trec_semid.serving.server.config import ServeConfig
from trec_semid.serving.server.metrics import Meters
from trec_semid.serving.server.routes import make_app
from trec_semid.serving.server.secrets import read_secrets

T = TypeVar("T")
DIM, ITEMS = 4, 50
STORED = {"ann": ("i3", "i4"), "bob": ("i7",)}
"""Histories that every version has."""


def vector(version: str, item: int) -> list[int]:
    digest = hashlib.sha256(f"{version}/{item}".encode()).digest()
    return [byte % 16 - 8 for byte in digest[:DIM]]


def row_of(item: str) -> int | None:
    number = item.removeprefix("i")
    return int(number) if item.startswith("i") and number.isdecimal() and int(number) < ITEMS else None


def expected_rank(version: str, history: Sequence[str], candidates: Sequence[str]) -> list[float | None]:
    """Tell the scores of candidates, number by number."""
    rows = [row for row in map(row_of, history) if row is not None]
    user = [sum(vector(version, row)[part] for row in rows) for part in range(DIM)]
    scores: list[float | None] = []
    for row in map(row_of, candidates):
        if row is None:
            scores.append(None)
            continue
        product = sum(one * other for one, other in zip(user, vector(version, row), strict=True))
        scores.append((product % 128) / 128)
    return scores


def expected_list(
    version: str,
    history: Sequence[str],
    n: int,
    allowed: Sequence[str] | None = None,
    forbidden: Sequence[str] = (),
) -> list[str]:
    """Tell a list, item by item: best first, of equal scores the lower row; the history is left out."""
    known = [item for item in history if row_of(item) is not None]
    rows = [row for row in range(ITEMS) if f"i{row}" not in {*known, *forbidden}]
    rows = [row for row in rows if allowed is None or f"i{row}" in allowed]
    user = [sum(vector(version, row_of(item) or 0)[part] for item in known) for part in range(DIM)]

    def best_first(row: int) -> tuple[int, int]:
        product = sum(one * other for one, other in zip(user, vector(version, row), strict=True))
        return -(product if known else -row), row

    return [f"i{row}" for row in sorted(rows, key=best_first)[:n]]


class WholeNumbers:
    """Computes by arrays what `expected_rank` and `expected_list` tell one by one; notes how it is used."""

    manifest: Any = SimpleNamespace(
        kind="retriever", items=SimpleNamespace(num_ids=ITEMS), reach=None, semantic_ids=None
    )

    def __init__(
        self, version: str = "v1", *, seconds: float = 0.0, can: Sequence[str] = ("rank", "retrieve")
    ) -> None:
        self.version, self.seconds, self.can = version, seconds, tuple(can)
        self.items = np.array([vector(version, item) for item in range(ITEMS)], np.int64)
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[tuple[str, int]] = []
        self.is_closed = False
        self.threads: set[int] = set()
        self.poison: str | None = None
        self.fault: Exception = RuntimeError("a fault of the engine's own")

    def _begin(self, kind: str, size: int) -> None:
        assert not self.is_closed, "asked after it was closed"
        self.batches.append((kind, size))
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        self.gate.wait(30)
        if kind in ("rank", "retrieve") and kind not in self.can:
            raise NotServedError(f"this bundle cannot {kind}")

    def _user(self, user: str | None, history: tuple[str, ...] | None) -> tuple[list[int], Any, int]:
        if self.poison is not None and user == self.poison:
            raise self.fault
        basis = "history" if history is not None else "stored" if user in STORED else "unknown_user"
        items = history if history is not None else STORED.get(user or "", ())
        rows = [row_of(item) for item in items]
        return [row for row in rows if row is not None], basis, rows.count(None)

    def rank(self, asked: Sequence[RankAsked]) -> list[RankAnswer]:
        self._begin("rank", len(asked))
        answers = []
        for user, history, context, candidates in asked:
            if "age" in context and not isinstance(context["age"], float):
                remedy = "Send a number"
                raise DataError("no number", field="context.age", value=context["age"], remedy=remedy)
            rows, basis, unknown = self._user(user, history)
            wanted = [row_of(each) for each in candidates]
            products = self.items[[row or 0 for row in wanted]] @ self.items[rows].sum(0)
            scores = np.where([row is None for row in wanted], np.nan, products % 128 / 128)
            answers.append(RankAnswer(scores.astype(np.float32), basis, unknown + wanted.count(None)))
        return answers

    def retrieve(self, asked: Sequence[RetrieveAsked]) -> list[RetrieveAnswer]:
        self._begin("retrieve", len(asked))
        answers = []
        for user, history, n, filters, _ in asked:
            rows, basis, unknown = self._user(user, history)
            scores = self.items @ self.items[rows].sum(0) if rows else -np.arange(ITEMS)
            keep = np.ones(ITEMS, bool)
            keep[rows] = False
            if filters.allowed is not None:
                known = [row for row in map(row_of, filters.allowed) if row is not None]
                keep &= np.isin(np.arange(ITEMS), np.array(known, np.int64))
            keep[[row for row in map(row_of, filters.forbidden) if row is not None]] = False
            order = np.argsort(-scores, kind="stable")
            best = order[keep[order]][:n]
            items = tuple(f"i{row}" for row in best)
            answers.append(
                RetrieveAnswer(
                    items, scores[best].astype(np.float32), basis if rows else "popularity", unknown, best
                )
            )
        return answers

    def assign(self, asked: Sequence[AssignAsked]) -> list[AssignAnswer]:
        self._begin("assign", len(asked))
        answers = []
        for contents, n in asked:
            codes = tuple(round(sum(numbers)) for numbers in contents.values())
            answers.append(
                AssignAnswer(codes, tuple(f"i{row}" for row in range(n)), np.arange(n, dtype=np.float32))
            )
        return answers

    def item(self, item: str) -> ItemFacts:
        self._begin("item", 1)
        if row_of(item) is None:
            raise DataError("not in the bundle", field="item", value=item)
        return ItemFacts(item, (1, 2), ("i0",), None, {"title": f"The {item} story"})

    def find(self, words: str, n: int) -> list[ItemFacts]:
        self._begin("find", 1)
        found = [
            f"i{row}"
            for row in range(ITEMS)
            if all(word in f"the i{row} story" for word in words.lower().split())
        ]
        return [ItemFacts(item, (), (), None, {"title": f"The {item} story"}) for item in found[:n]]

    def examples(self, n: int) -> tuple[str, ...]:
        return tuple(f"i{row}" for row in range(min(n, ITEMS)))

    def close(self) -> None:
        assert not self.is_closed, "closed twice"
        self.is_closed = True


class Served:
    """A running application, its client and what it wrote."""

    def __init__(self, service: Service, app: Any, client: httpx.AsyncClient, lines: list[str]) -> None:
        self.service, self.app, self.client, self.lines = service, app, client, lines

    async def post(self, route: str, **body: Any) -> httpx.Response:
        return await self.client.post(f"/v1/{route}", json=body)


@asynccontextmanager
async def served(engine: WholeNumbers | None, **config: Any) -> AsyncIterator[Served]:
    """Serve an engine in this process, without a socket."""
    settings = ServeConfig(bundle="unused", **config)
    meters = Meters()
    batcher = Batcher(settings.batch, settings.limits.queue, meters)
    service = Service(settings, batcher, meters, read_secrets(settings.token))
    lines: list[str] = []
    app = make_app(service, lines.append)
    batcher.start()
    if engine is not None:
        batcher.use(engine)
        meters.swapped(None, engine)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield Served(service, app, client, lines)
    finally:
        if engine is not None:
            engine.gate.set()
        batcher.close()


class Standing:
    """A server that stands while a module's tests ask it, in the event loop of a thread of its own."""

    def __init__(self, engine: WholeNumbers, **config: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._context = served(engine, **config)
        self.server = self.run(self._context.__aenter__())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in that loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def close(self) -> None:
        self.run(self._context.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
