"""The routes, and what describes them in `/openapi.json`."""

import inspect
import logging
from collections.abc import Callable, Coroutine, Mapping
from importlib.resources import files
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from trec_semid import __version__
from trec_semid.serving.server.answering import Answering, Service
from trec_semid.serving.server.batching import Kind
from trec_semid.serving.server.front import OTHER, Front, json_response, refused, write_line
from trec_semid.serving.server.messages import (
    AssignReply,
    ErrorReply,
    FoundReply,
    ItemReply,
    RankReply,
    RetrieveReply,
    assign_content,
    bodies,
    found_content,
    item_content,
    rank_content,
    retrieve_content,
)
from trec_semid.serving.server.metrics import CONTENT_TYPE
from trec_semid.serving.server.refusals import Refusal, of_error, of_invalid

_log = logging.getLogger(__name__)
Handler = Callable[[Request], Coroutine[Any, Any, Response]]
_STUCK_S = 60.0
"""A batch that is so long with the engine will not come back: the process should be started anew."""
_MOST_FOUND = 50
_ROUTES = (
    "/v1/rank",
    "/v1/retrieve",
    "/v1/assign",
    "/v1/items",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/",
)
_ITEM = "/v1/items/"
_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_REFUSALS = {
    401: "The secret is missing or wrong",
    404: "The bundle does not serve this, or has no such item",
    408: "The body did not come in time",
    413: "The body, or a list in it, is too long",
    422: "Something in the request cannot be used: `faults` says where, and what to do",
    429: "Too many requests wait: come again after Retry-After",
    503: "No bundle is open yet, or the server is stopping",
    504: "No answer within the time limit",
}


class _Verb(NamedTuple):
    """A route whose body goes to the engine."""

    kind: Kind
    reply: type[BaseModel]
    content: Callable[[str, Any], Mapping[str, object]]
    words: str


_VERBS = (
    _Verb("rank", RankReply, rank_content, "Score candidates"),
    _Verb("retrieve", RetrieveReply, retrieve_content, "List items"),
    _Verb("assign", AssignReply, assign_content, "Give new content codes"),
)


class Ready(BaseModel):
    """Whether requests are answered."""

    ready: bool
    version: str | None
    """Of the bundle that is served."""
    problem: str | None
    """Why another bundle was refused; null where none was."""


def make_app(service: Service, log: Callable[[str], object] = write_line) -> ASGIApp:
    """Return the whole application.

    Args:
        service: what it stands on.
        log: takes a line for each request, where the config wants any.
    """
    app = FastAPI(
        title="trec_semid",
        version=__version__,
        description="Rankings and lists of a bundle. Every answer says which version of it made it.",
        docs_url=None,  # its page fetches scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    direct: dict[str, Answering] = {}
    for verb, body in zip(_VERBS, bodies(service.config.limits), strict=True):
        _describe(app, service, verb, body)
        direct[f"/v1/{verb.kind}"] = Answering(service, verb.kind, body, verb.content)
    _add_items(app, service)
    _add_probes(app, service)
    _add_page(app)
    _add_handlers(app, service)
    return Front(
        app,
        direct,
        route_of=_route_of,
        admit=service.secrets,
        body_bytes=service.config.limits.body_bytes,
        meters=service.meters,
        version=lambda: service.batcher.version,
        log=log if service.config.access_log else None,
    )


def _route_of(path: str) -> str:
    if path in _ROUTES:
        return path
    return "/v1/items/{item}" if path.startswith(_ITEM) else OTHER


def _guards(service: Service) -> list[Any]:
    """Return what says in the description that a secret is wanted; `Front` asks for it."""
    return [Depends(HTTPBearer(auto_error=False))] if service.secrets.are_asked else []


def _refusals(service: Service, *statuses: int) -> dict[int | str, dict[str, Any]]:
    asked = [401, *statuses] if service.secrets.are_asked else statuses
    return {status: {"model": ErrorReply, "description": _REFUSALS[status]} for status in asked}


def _describe(app: FastAPI, service: Service, verb: _Verb, body: type[BaseModel]) -> None:
    """Put a route into the description; `Front` has it answered directly, so that this is never called."""

    async def described(asked: Any) -> Response:
        """Stand for the route in the description; its words are those of the body."""
        raise AssertionError

    parameter = inspect.signature(described).parameters["asked"].replace(annotation=body)
    described.__signature__ = inspect.Signature([parameter])  # pyright: ignore[reportFunctionMemberAccess]
    described.__doc__ = body.__doc__
    app.post(
        f"/v1/{verb.kind}",
        response_model=verb.reply,
        summary=verb.words,
        operation_id=verb.kind,
        dependencies=_guards(service),
        responses=_refusals(service, 404, 408, 413, 422, 429, 503, 504),
    )(described)


def _add_items(app: FastAPI, service: Service) -> None:
    shared: dict[str, Any] = {"dependencies": _guards(service)}

    async def find(
        request: Request,
        words: Annotated[
            str, Query(min_length=1, max_length=200, description="Of title or fields", examples=["star wars"])
        ],
        n: Annotated[int, Query(ge=1, le=_MOST_FOUND, description="Items, at most")] = 10,
    ) -> Response:
        """Return items whose readable text has all the words, best known first."""
        done = await service.ask_in_time(request.scope["trace"], "find", (words, n))
        return json_response(found_content(done.version, done.answer))

    async def item(request: Request, item: str) -> Response:
        """Return what the bundle knows of an item."""
        done = await service.ask_in_time(request.scope["trace"], "item", item)
        return json_response(item_content(done.version, done.answer))

    told = _refusals(service, 404, 422, 429, 503, 504)
    app.get("/v1/items", response_model=FoundReply, responses=told, summary="Find items by words", **shared)(
        find
    )
    app.get(
        "/v1/items/{item:path}", response_model=ItemReply, responses=told, summary="Show an item", **shared
    )(item)


def _add_probes(app: FastAPI, service: Service) -> None:
    async def healthz() -> Response:
        """Tell whether the process works; where not, it should be started anew."""
        is_stuck = service.batcher.busy_s > _STUCK_S
        return json_response({"healthy": not is_stuck}, 503 if is_stuck else 200)

    async def readyz() -> Response:
        """Tell whether requests may come."""
        version = service.batcher.version
        is_ready = version is not None and not service.is_stopping
        ready = Ready(ready=is_ready, version=version, problem=service.problem())
        return json_response(ready.model_dump(), 200 if is_ready else 503)

    async def metrics() -> Response:
        """Return counts and times, for Prometheus."""
        return Response(service.meters.text(), headers={"Content-Type": CONTENT_TYPE})

    told: dict[int | str, dict[str, Any]] = {503: {"model": Ready, "description": "Not now"}}
    app.get("/healthz", response_model=dict[str, bool], responses={503: {"model": dict[str, bool]}})(healthz)
    app.get("/readyz", response_model=Ready, responses=told)(readyz)
    app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_refusals(service)},
        dependencies=_guards(service),
    )(metrics)


def _add_page(app: FastAPI) -> None:
    folder = files("trec_semid.serving.server") / "page"

    def add(path: str, name: str, kind: str) -> None:
        """Answer a path with a file of the page."""
        content = (folder / name).read_bytes()

        async def page() -> Response:
            """Return the file."""
            return Response(content, media_type=kind, headers=_PAGE_HEADERS)

        app.get(path, include_in_schema=False)(page)

    for path, (name, kind) in _PAGE.items():
        add(path, name, kind)


def _add_handlers(app: FastAPI, service: Service) -> None:
    async def on_refusal(request: Request, error: Exception) -> Response:
        """Answer what we refuse, and what went wrong, in one form."""
        return refused(of_error(error), request.scope["trace"], service.batcher.version)

    async def on_http(request: Request, error: Exception) -> Response:
        """Answer what the framework refuses, such as an unknown route, in the same form."""
        assert isinstance(error, HTTPException)
        kind = {404: "no_such_route", 405: "method_not_allowed"}.get(error.status_code, "refused")
        refusal = Refusal(error.status_code, kind, str(error.detail), headers=error.headers)
        return await on_refusal(request, refusal)

    async def on_invalid(request: Request, error: Exception) -> Response:
        """Answer a body that is not of its schema, field by field."""
        assert isinstance(error, RequestValidationError)
        return await on_refusal(request, of_invalid(error.errors()))

    app.add_exception_handler(Refusal, on_refusal)
    app.add_exception_handler(Exception, on_refusal)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
