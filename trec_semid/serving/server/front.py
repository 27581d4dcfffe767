"""What every request passes before and after its route: id, secret, size, errors, counts, a line of log."""

import json
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import final

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trec_semid.serving.server.metrics import Meters
from trec_semid.serving.server.refusals import Refusal, body_too_large, of_error
from trec_semid.serving.server.secrets import Secrets

_log = logging.getLogger(__name__)
OTHER = "other"
_ID_LENGTH = 64
_MOST_DIGITS = 18


@dataclass(slots=True)
class Trace:
    """What is known of one request, for its headers, its counts and its line of log."""

    route: str
    request_id: str
    began: float = field(default_factory=time.perf_counter)
    status: int = 0
    version: str | None = None
    """Of the bundle that answered."""
    batch: int = 0
    """Requests that were answered together with it; 0 where the engine was not asked."""


def json_response(content: object, status: int = 200) -> Response:
    """Return an answer of JSON; numbers that are not finite become null."""
    return Response(to_json(content, inf_nan_mode="null"), status, media_type="application/json")


def refused(refusal: Refusal, trace: Trace, version: str | None) -> Response:
    """Return the answer of a refusal."""
    response = json_response(refusal.content(version, trace.request_id), refusal.status)
    response.headers.update(refusal.headers)
    return response


@final
class Front:
    """An ASGI application around another one."""

    def __init__(
        self,
        app: ASGIApp,
        direct: Mapping[str, Callable[[Receive, Trace], Awaitable[bytes]]],
        *,
        route_of: Callable[[str], str],
        admit: Secrets,
        body_bytes: int,
        meters: Meters,
        version: Callable[[], str | None],
        log: Callable[[str], object] | None,
    ) -> None:
        """Name what is inside, and what it needs.

        Args:
            app: answers what is not answered directly.
            direct: by route, what makes an answer's JSON of a POST; through the app it would take longer.
            route_of: path to the route's name in counts and logs, `other` for none.
            admit: the secrets of callers; routes under /v1 and the counts want one.
            body_bytes: larger bodies are refused.
            meters: count.
            version: of the bundle that is served now.
            log: takes a line for each request.
        """
        self._app, self._direct, self._route_of = app, direct, route_of
        self._secrets, self._body_bytes = admit, body_bytes
        self._meters, self._version, self._log = meters, version, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        trace = Trace(self._route_of(scope["path"]), _request_id(headers.get(b"x-request-id")))
        scope["trace"] = trace
        send_with_headers = self._sender(send, trace)
        answering = self._direct.get(trace.route) if scope["method"] == "POST" else None
        try:
            self._expect_welcome(trace.route, headers)
            if answering is not None:
                await _send_json(await answering(receive, trace), send_with_headers)
            else:
                await self._app(scope, receive, send_with_headers)
        except Exception as error:
            if not isinstance(error, Refusal):
                _log.exception("request %s to %s failed", trace.request_id, trace.route)
            if not trace.status:
                answer = refused(of_error(error), trace, self._version())
                await answer(scope, receive, send_with_headers)
        finally:
            self._note(trace)

    def _sender(self, send: Send, trace: Trace) -> Send:
        """Return what sends an answer, with the request's id and the bundle's version in its headers."""

        async def send_with_headers(message: Message) -> None:
            """Add headers where the answer begins."""
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                headers: list[tuple[bytes, bytes]] = message["headers"]
                headers.append((b"x-request-id", trace.request_id.encode()))
                if version := trace.version or self._version():
                    headers.append((b"x-bundle-version", version.encode()))
            await send(message)

        return send_with_headers

    def _expect_welcome(self, route: str, headers: dict[bytes, bytes]) -> None:
        is_guarded = route.startswith("/v1/") or route == "/metrics"
        if is_guarded and not self._secrets.admit(headers.get(b"authorization")):
            told = {"WWW-Authenticate": "Bearer", "Connection": "close"}
            raise Refusal(401, "unauthorized", "send the header Authorization: Bearer SECRET", headers=told)
        length = headers.get(b"content-length", b"0")
        # Of more digits it is too large anyhow, and Python would not read thousands.
        if not length.isdigit() or len(length) > _MOST_DIGITS or int(length) > self._body_bytes:
            raise body_too_large(self._body_bytes)

    def _note(self, trace: Trace) -> None:
        seconds = time.perf_counter() - trace.began
        self._meters.answered(trace.route, trace.status, seconds)
        if self._log is not None:
            self._log(log_line(trace, seconds))


async def _send_json(content: bytes, send: Send) -> None:
    length = str(len(content)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def log_line(trace: Trace, seconds: float) -> str:
    """Return the line of JSON of one request."""
    facts = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "route": trace.route,
        "status": trace.status,
        "ms": round(seconds * 1000, 3),
        "batch": trace.batch,
        "version": trace.version,
        "request_id": trace.request_id,
    }
    return json.dumps(facts) + "\n"


def write_line(line: str) -> None:
    """Write a line to the standard output at once and whole, whatever other workers write there."""
    os.write(1, line.encode())


def _request_id(given: bytes | None) -> str:
    """Return the caller's id where it is one that a log can hold, else a new one."""
    text = (given or b"").decode("latin-1")
    is_plain = (
        0 < len(text) <= _ID_LENGTH and text.isascii() and text.replace("-", "").replace("_", "").isalnum()
    )
    return text if is_plain else secrets.token_hex(8)
