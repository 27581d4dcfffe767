"""Reads the body of a request, as far as it may go."""

import asyncio
import time

from starlette.requests import ClientDisconnect, Request

from trec_semid.serving.server.config import LimitsConfig
from trec_semid.serving.server.front import Trace
from trec_semid.serving.server.refusals import Refusal, body_too_large

_CLIENT_LEFT = 499
"""Status of a request whose client did not wait, as proxies have it: for the log, as nobody reads it."""


async def read_body(request: Request, limits: LimitsConfig, trace: Trace) -> bytes:
    """Return the whole body; of one that is too large no more is read than shows that.

    Raises:
        Refusal: it is too large (413), does not come in time (408), or the client left meanwhile (499).
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(trace.began + limits.time_s - time.perf_counter()):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise body_too_large(limits.body_bytes)
                parts.append(part)
    except ClientDisconnect:
        raise Refusal(_CLIENT_LEFT, "client_left", "the client left") from None
    except TimeoutError:
        told = {"Connection": "close"}
        raise Refusal(408, "body_late", "the body did not come in time", headers=told) from None
    return b"".join(parts)
