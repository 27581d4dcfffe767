"""From the bytes of a request to those of its answer, for routes whose body goes to the engine.

pydantic reads the body as it came, and writes the answer. FastAPI would parse the JSON, walk through what
came of it, and do so again on the way back, which takes longer than many a model.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.types import Receive

from trec_semid.serving.server.batching import Batcher, Done, Kind
from trec_semid.serving.server.config import ServeConfig
from trec_semid.serving.server.front import Trace
from trec_semid.serving.server.messages import Asked
from trec_semid.serving.server.metrics import Meters
from trec_semid.serving.server.refusals import Refusal, body_too_large, of_error, of_invalid
from trec_semid.serving.server.secrets import Secrets

_log = logging.getLogger(__name__)
_FAILED = 500
_CLIENT_LEFT = 499
"""Status of a request whose client did not wait, as proxies have it: for the log, as nobody reads it."""


@dataclass
class Service:
    """What the routes stand on."""

    config: ServeConfig
    batcher: Batcher
    meters: Meters
    secrets: Secrets
    problem: Callable[[], str | None] = lambda: None
    """Why another bundle was refused."""
    is_stopping: bool = False

    def seconds_left(self, trace: Trace) -> float:
        """Return how long a request may still take [s]."""
        return trace.began + self.config.limits.time_s - time.perf_counter()

    async def ask(self, trace: Trace, kind: Kind, asked: Any) -> Done:
        """Ask the engine, however long it takes.

        Raises:
            Refusal: there is no engine, too many wait, or this cannot be answered.
        """
        try:
            done = await self.batcher.ask(kind, asked)
        except Refusal:
            raise
        except Exception as error:
            refusal = of_error(error)
            if refusal.status == _FAILED:
                _log.exception("request %s to %s failed", trace.request_id, trace.route)
            raise refusal from None
        trace.version, trace.batch = done.version, done.batch
        self.meters.asked(trace.route, done)
        return done

    async def ask_in_time(self, trace: Trace, kind: Kind, asked: Any) -> Done:
        """Ask the engine within the time that is left.

        Raises:
            Refusal: as `ask`, or it is too late.
        """
        try:
            async with asyncio.timeout(self.seconds_left(trace)):
                return await self.ask(trace, kind, asked)
        except TimeoutError:
            raise _too_late() from None


@final
class Answering:
    """Answers the requests of one route."""

    def __init__(
        self,
        service: Service,
        kind: Kind,
        body: type[Asked],
        content: Callable[[str, Any], Mapping[str, object]],
    ) -> None:
        """Name what the route is.

        Args:
            service: what it stands on.
            kind: the engine's method.
            body: what requests hold.
            content: makes of a version and an answer what its JSON holds.
        """
        self._service, self._body, self._content = service, body, content
        self._kind: Kind = kind

    async def __call__(self, receive: Receive, trace: Trace) -> bytes:
        """Return the JSON of the answer.

        Raises:
            Refusal: the request is not answered.
        """
        service = self._service
        raw: bytes | None = None
        try:
            async with asyncio.timeout(service.seconds_left(trace)):
                raw = await read_body(receive, service.config.limits.body_bytes)
                asked = self._read(raw)
                read_s = time.perf_counter() - trace.began
                done = await service.ask(trace, self._kind, asked)
        except TimeoutError:
            raise (_too_late() if raw is not None else _body_late()) from None
        began = time.perf_counter()
        answer = to_json(self._content(done.version, done.answer), inf_nan_mode="null")
        service.meters.stages(read_s, done.waited_s, done.engine_s, time.perf_counter() - began)
        return answer

    def _read(self, raw: bytes) -> Any:
        try:
            return self._body.model_validate_json(raw).asked()
        except ValidationError as error:
            raise of_invalid(error.errors(include_url=False), self._body) from None


async def read_body(receive: Receive, limit: int) -> bytes:
    """Return the whole body; of one that is too large no more is read than shows that.

    Raises:
        Refusal: it is too large (413), or the client left meanwhile (499).
    """
    parts: list[bytes] = []
    size, is_more = 0, True
    while is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(_CLIENT_LEFT, "client_left", "the client left")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise body_too_large(limit)
        parts.append(part)
        is_more = message.get("more_body", False)
    return b"".join(parts)


def _too_late() -> Refusal:
    return Refusal(504, "too_late", "no answer within the time limit")


def _body_late() -> Refusal:
    told = {"Connection": "close"}
    return Refusal(408, "body_late", "the body did not come in time", headers=told)
