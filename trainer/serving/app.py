"""The web application: a page, a JSON endpoint, health and metrics.

POST /translate takes {"text": "A sentence." or ["Several", "of them"], "attention": false} and
answers {"translations": [{"translation": ..., "score": ..., "cut": ...}]}, one an input, in order.
What is wrong with a request is one sentence, {"error": ...}, with a status of 4xx.
"""

import asyncio
import contextlib
import dataclasses
import json
import time
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from trainer.serving.batcher import Batcher, QueueFullError
from trainer.serving.engines import TranslationEngine
from trainer.serving.metrics import Metrics
from trainer.serving.page import PAGE

_FIELDS = ("text", "attention")
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        body_bytes: of a request.
        sentences: of a request.
        seconds: until it is answered.
        queue_sentences: that may wait, of all requests.
        batch_sentences: that are translated together.
    """

    body_bytes: int = 1 << 16
    sentences: int = 64
    seconds: float = 30.0
    queue_sentences: int = 512
    batch_sentences: int = 32


async def _read_body(request: Request, most: int) -> bytes:
    """Return the body.

    Raises:
        HTTPException: it is longer than `most` bytes; no more than that is read.
    """
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > most:
            raise HTTPException(413, f"The request is larger than {most:,} bytes.")
    return bytes(body)


def _parse(body: bytes, limits: Limits) -> tuple[list[str], bool]:
    """Return the sentences of a request, and whether it wants attention.

    Raises:
        HTTPException: it is not what the endpoint takes.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "The request is not JSON.") from error
    if not isinstance(value, dict):
        raise HTTPException(400, 'The request is not a JSON object with the field "text".')
    if "text" not in value:
        raise HTTPException(400, 'The field "text" is missing.')
    unknown = sorted(set(value) - set(_FIELDS))
    if unknown:
        names = ", ".join(json.dumps(name) for name in unknown)
        raise HTTPException(400, f"There is no such field: {names}.")
    text, attention = value["text"], value.get("attention", False)
    lines = [text] if isinstance(text, str) else text
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise HTTPException(400, 'The field "text" is neither a string nor a list of strings.')
    if not isinstance(attention, bool):
        raise HTTPException(400, 'The field "attention" is neither true nor false.')
    if len(lines) > limits.sentences:
        raise HTTPException(
            413, f"There are {len(lines):,} sentences; a request has at most {limits.sentences:,}."
        )
    try:
        "".join(lines).encode("utf-8")
    except UnicodeEncodeError as error:
        raise HTTPException(400, 'The field "text" holds half a surrogate pair.') from error
    return lines, attention


def make_app(engine: TranslationEngine, limits: Limits) -> Starlette:
    """Return the application.

    Args:
        engine: translates.
        limits: of requests.
    """
    metrics = Metrics()
    batcher = Batcher(engine, metrics, limits.batch_sentences, limits.queue_sentences)

    async def answer(request: Request) -> dict[str, Any]:
        lines, attention = _parse(await _read_body(request, limits.body_bytes), limits)
        found = await batcher.translate(lines, attention)
        metrics.sentences.inc(len(found))
        values = [dataclasses.asdict(one) for one in found]
        if not attention:
            for value in values:
                del value["attention"]
        return {"translations": values}

    async def translate(request: Request) -> Response:
        began, status = time.monotonic(), 500
        try:
            result = await asyncio.wait_for(answer(request), limits.seconds)
            status = 200
            return JSONResponse(result)
        except HTTPException as error:
            status = error.status_code
            raise
        except ClientDisconnect:
            status = 499  # as nginx counts it; nobody reads the answer
            return Response(status_code=status)
        except QueueFullError as error:
            status = 503
            text = "Too many sentences wait already; try again."
            raise HTTPException(status, text, {"Retry-After": "1"}) from error
        except asyncio.TimeoutError as error:  # another class in Python 3.10
            status = 504
            text = f"There was no translation in {limits.seconds:g} seconds."
            raise HTTPException(status, text) from error
        finally:
            metrics.requests.labels(str(status)).inc()
            metrics.seconds.observe(time.monotonic() - began)

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE, headers=_PAGE_HEADERS)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": engine.name})

    async def measured(request: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def fail(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = {**(error.headers or {}), "Connection": "close"}
        return JSONResponse({"error": error.detail}, error.status_code, headers)

    async def fail_unexpectedly(request: Request, error: Exception) -> Response:
        text = "The server failed; its log says why."
        return JSONResponse({"error": text}, 500)  # the server logs the error

    @contextlib.asynccontextmanager
    async def run_batches(app: Starlette):
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    return Starlette(
        routes=[
            Route("/", page),
            Route("/translate", translate, methods=["POST"]),
            Route("/healthz", health),
            Route("/metrics", measured),
        ],
        exception_handlers={HTTPException: fail, Exception: fail_unexpectedly},
        lifespan=run_batches,
    )
