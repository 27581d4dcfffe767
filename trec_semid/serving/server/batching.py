"""One thread that asks the engine, and the requests that wait for it: those of one kind go together.

While the engine is busy with a batch, the next one gathers. Every batch is answered by one engine as a whole,
whatever comes to be the current one meanwhile.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, final, get_args

from trec_semid.core.errors import DataError
from trec_semid.serving.engine import Engine, NotServedError, RankAsked
from trec_semid.serving.server.config import BatchConfig
from trec_semid.serving.server.refusals import Refusal, not_ready

Kind = Literal["rank", "retrieve", "assign", "item", "find"]
"""What an engine is asked: its method."""
_TOGETHER = ("rank", "retrieve", "assign")
"""Kinds of which an engine takes a list."""
_REQUESTS_A_SECOND = 50.0
"""A guess of how fast a queue empties, before it is known."""


class Done(NamedTuple):
    """An answer, and how it came about."""

    answer: Any
    version: str
    """Of the engine that gave it."""
    batch: int
    """Requests that were answered together."""
    waited_s: float
    engine_s: float


class Watcher(Protocol):
    """Is told what goes on, in the event loop."""

    def waiting(self, requests: int) -> None:
        """So many wait."""
        ...

    def batched(self, kind: Kind, requests: int) -> None:
        """So many were answered together."""
        ...


@dataclass(slots=True, eq=False)
class _Waiting:
    kind: Kind
    asked: Any
    future: "asyncio.Future[Done]"
    began: float = field(default_factory=time.perf_counter)

    @property
    def candidates(self) -> int:
        """How much of a batch it is: rows to score, or one."""
        return len(self.asked.candidates) if isinstance(self.asked, RankAsked) else 1


@final
class Batcher:
    """Requests in, answers out, through one thread.

    `ask` and the answers' callbacks run in the event loop that `start` was called in; the rest in the thread.
    """

    def __init__(
        self, config: BatchConfig, queue: int, watcher: Watcher, begin: Callable[[], object] | None = None
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            config: how large batches get.
            queue: requests that may wait.
            watcher: is told what goes on.
            begin: called in the thread before it works.
        """
        self._config, self._limit, self._watcher, self._begin = config, queue, watcher, begin
        self._waiting: dict[Kind, deque[_Waiting]] = {kind: deque() for kind in get_args(Kind)}
        self._depth, self._is_idle, self._is_closing = 0, False, False
        self._told = threading.Condition()
        self._engine: Engine | None = None
        self._retired: list[Engine] = []
        self._rate = _REQUESTS_A_SECOND
        self._busy_since: float | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread; call it in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def version(self) -> str | None:
        """That of the current engine; None while there is none."""
        engine = self._engine
        return engine.version if engine else None

    @property
    def engine(self) -> Engine | None:
        """The current engine."""
        return self._engine

    @property
    def depth(self) -> int:
        """How many requests wait."""
        return self._depth

    @property
    def busy_s(self) -> float:
        """How long the batch that is with the engine has been there [s]; 0 where none is."""
        since = self._busy_since
        return time.perf_counter() - since if since is not None else 0.0

    def let_pass(self, at_most_s: float) -> bool:
        """Wait while a batch is with the engine; return whether there was any."""
        if self._busy_since is None:
            return False
        self._idle.wait(at_most_s)
        return True

    def use(self, engine: Engine) -> None:
        """Answer by this engine from the next batch on; the one before is closed after its last batch."""
        with self._told:
            if self._engine is not None:
                self._retired.append(self._engine)
            self._engine = engine
            self._told.notify()

    def close(self) -> None:
        """Answer what waits, then end the thread and close the engine."""
        with self._told:
            self._is_closing = True
            self._told.notify()
        self._thread.join()

    async def ask(self, kind: Kind, asked: Any) -> Done:
        """Return the engine's answer; who cancels this is not computed for.

        Args:
            kind: the engine's method.
            asked: what it takes.

        Raises:
            Refusal: there is no engine (503), or too many wait (429).
            Exception: what the engine raised for this request.
        """
        if self._engine is None:
            raise not_ready("the bundle is being opened")
        if self._depth >= self._limit:
            raise self._overload()
        entry = _Waiting(kind, asked, self._loop.create_future())
        self._put(entry)
        return await entry.future

    def _overload(self) -> Refusal:
        seconds = max(1, round(self._depth / max(self._rate, 1e-3)))
        message = f"{self._depth} requests wait already: come again in {seconds} s"
        return Refusal(429, "overloaded", message, headers={"Retry-After": str(seconds)})

    def _put(self, entry: _Waiting) -> None:
        with self._told:
            self._waiting[entry.kind].append(entry)
            self._depth += 1
            # A thread that waits for a batch to fill need not wake for every request.
            if self._is_idle or self._depth >= self._config.max_requests:
                self._told.notify()
        self._watcher.waiting(self._depth)

    def _run(self) -> None:
        if self._begin is not None:
            self._begin()
        while batch := self._next():
            engine, entries = batch
            if entries:
                self._idle.clear()
                self._busy_since = time.perf_counter()
                results = _ask_together(engine, entries)
                took = time.perf_counter() - self._busy_since
                self._busy_since = None
                self._idle.set()
                self._rate = 0.9 * self._rate + 0.1 * len(entries) / max(took, 1e-6)
                self._loop.call_soon_threadsafe(self._tell, entries, results)
            del engine
        self._close_engines()

    def _next(self) -> tuple[Engine, list[_Waiting]] | None:
        """Wait for requests; return a batch and its engine (none where engines changed); None at the end."""
        with self._told:
            while not self._depth and not self._is_closing and not self._retired:
                self._is_idle = True
                self._told.wait()
                self._is_idle = False
            retired, self._retired = self._retired, []
            entries = [] if retired else self._take()
            engine = self._engine
        for each in retired:
            each.close()
        if not entries and not retired and self._is_closing:
            return None
        assert engine is not None
        return engine, entries

    def _take(self) -> list[_Waiting]:
        """Return what waits of the kind that waits longest; wait for more of it as configured."""
        heads = [queue[0] for queue in self._waiting.values() if queue]
        if not heads:
            return []
        head = min(heads, key=lambda entry: entry.began)
        queue = self._waiting[head.kind]
        most = self._config.max_requests if head.kind in _TOGETHER else 1
        until = head.began + self._config.max_wait_ms / 1000
        while len(queue) < most and not self._is_closing and (left := until - time.perf_counter()) > 0:
            self._told.wait(left)
        taken: list[_Waiting] = []
        candidates = 0
        while queue and len(taken) < most:
            candidates += queue[0].candidates
            if taken and candidates > self._config.max_candidates:
                break
            entry = queue.popleft()
            self._depth -= 1
            # Who does not wait any more is not computed for.
            if entry.future.done():
                candidates -= entry.candidates
            else:
                taken.append(entry)
        return taken

    def _tell(self, entries: Sequence[_Waiting], results: Sequence[Done | BaseException]) -> None:
        self._watcher.batched(entries[0].kind, len(entries))
        self._watcher.waiting(self._depth)
        for entry, result in zip(entries, results, strict=True):
            if entry.future.done():
                continue
            if isinstance(result, BaseException):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(result)

    def _close_engines(self) -> None:
        with self._told:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


def _ask_together(engine: Engine, entries: Sequence[_Waiting]) -> list[Done | BaseException]:
    """Return the answer to each of a batch, or what the engine raised for it."""
    began = time.perf_counter()
    try:
        answers = _answers(engine, entries)
    except Exception as error:
        # One request must not spoil the others: each is asked alone.
        if len(entries) > 1:
            return [result for entry in entries for result in _ask_together(engine, [entry])]
        return [error]
    took = time.perf_counter() - began
    size = len(entries)
    pairs = zip(entries, answers, strict=True)
    return [Done(answer, engine.version, size, began - entry.began, took) for entry, answer in pairs]


def _answers(engine: Engine, entries: Sequence[_Waiting]) -> Sequence[Any]:
    asked = [entry.asked for entry in entries]
    match entries[0].kind:
        case "rank":
            return engine.rank(asked)
        case "retrieve":
            return engine.retrieve(asked)
        case "assign":
            return engine.assign(asked)
        case "item":
            return [_item(engine, each) for each in asked]
        case "find":
            return [engine.find(*each) for each in asked]


def _item(engine: Engine, item: str) -> Any:
    try:
        return engine.item(item)
    except NotServedError:
        raise
    except DataError as error:
        raise Refusal(404, "unknown_item", f"{item}: {error.problem}") from None
