"""One contestant: `servers.py echo|naive|ours [--bundle B] [--set a.b=c ...]`; says `PORT n` when it answers.

echo: uvicorn alone, which reads the body and sends it back. naive: FastAPI as in its tutorial, and one pass
of the engine for each request. ours: `trec-semid serve`. All have one process, one thread of the engine, and
no log.
"""

import argparse
import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any

import uvicorn

from trec_semid.serving.engine import Engine, Filters, RankAsked, RetrieveAsked
from trec_semid.serving.server.config import ServeConfig
from trec_semid.serving.server.process import listen


def opener(bundle: str | None) -> Callable[[str], Engine]:
    """Return what opens a bundle; drawn numbers where there is none."""
    if bundle:
        from trec_semid.serving.engine import open_engine

        return open_engine
    from numbers_engine import NumbersEngine

    return lambda uri: NumbersEngine()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Send the body back."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def naive(engine: Engine) -> Any:
    """Return FastAPI's application as one writes it first."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    class RankBody(BaseModel):
        user: str | None = None
        history: list[str] | None = None
        context: dict[str, str | float] = {}
        candidates: list[str]

    class RankTold(BaseModel):
        version: str
        basis: str
        scores: list[float]
        unknown: int

    class RetrieveBody(BaseModel):
        user: str | None = None
        history: list[str] | None = None
        n: int = 10

    class RetrieveTold(BaseModel):
        version: str
        basis: str
        items: list[str]
        scores: list[float]
        unknown: int

    app = FastAPI()

    @app.post("/v1/rank")
    async def rank(body: RankBody) -> RankTold:
        history = None if body.history is None else tuple(body.history)
        answer = engine.rank([RankAsked(body.user, history, body.context, tuple(body.candidates))])[0]
        scores = answer.scores.tolist()
        return RankTold(version=engine.version, basis=answer.basis, scores=scores, unknown=answer.unknown)

    @app.post("/v1/retrieve")
    async def retrieve(body: RetrieveBody) -> RetrieveTold:
        history = None if body.history is None else tuple(body.history)
        answer = engine.retrieve([RetrieveAsked(body.user, history, body.n, Filters())])[0]
        return RetrieveTold(
            version=engine.version,
            basis=answer.basis,
            items=list(answer.items),
            scores=answer.scores.tolist(),
            unknown=answer.unknown,
        )

    return app


def run_plainly(app: Any) -> None:
    """Run an application in uvicorn."""
    with listen("127.0.0.1", 0) as own:
        tell(own)
        config = uvicorn.Config(app, lifespan="off", log_level="error", access_log=False)
        asyncio.run(uvicorn.Server(config).serve([own]))


def run_ours(bundle: str | None, sets: list[str]) -> None:
    """Run ours as its process does."""
    from trec_semid.core.config import load_config
    from trec_semid.serving.server.process import Means, serve_here
    from trec_semid.serving.server.secrets import Secrets

    given = [f"bundle={bundle or POINTED}", "access_log=false", "limits.time_s=10", *sets]
    config = load_config(ServeConfig, [], given)
    own = listen("127.0.0.1", 0)
    serve_here(Means(config, own, Secrets(()), opener(bundle), None), lambda: tell(own))


def tell(own: socket.socket) -> None:
    """Say where it listens."""
    sys.stdout.write(f"PORT {own.getsockname()[1]}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until told to stop."""
    import torch

    torch.set_num_threads(1)
    if OPTIONS.contestant == "echo":
        run_plainly(echo)
    elif OPTIONS.contestant == "naive":
        run_plainly(naive(opener(OPTIONS.bundle)(OPTIONS.bundle)))
    else:
        run_ours(OPTIONS.bundle, OPTIONS.sets)


if __name__ == "__main__":
    PARSER = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    PARSER.add_argument("contestant", choices=["echo", "naive", "ours"])
    PARSER.add_argument("--bundle")
    PARSER.add_argument("--pointed", help="folder of an empty bundle, for drawn numbers")
    PARSER.add_argument("--set", dest="sets", action="append", default=[])
    OPTIONS = PARSER.parse_args()
    POINTED = OPTIONS.pointed
    main()
