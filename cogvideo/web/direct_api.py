"""Endpoints in one request: POST /gradio_api/run/make_video with {"data": [...]}, answered with what it returns.

Gradio has this address too, but answers whatever was wrong with the request as an internal error, without a word. Here
it is status 422 and a sentence. Parameters left out at the end have their defaults. No Gradio.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
from collections.abc import Iterable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cogvideo.errors import CogVideoError, RequestError
from cogvideo.web.api import Endpoint

log = logging.getLogger(__name__)


def direct(endpoints: Iterable[Endpoint]) -> list[Route]:
    """The addresses under which Gradio, too, takes direct calls of the endpoints."""
    return [
        Route(f"/gradio_api/{way}/{endpoint.__name__}{end}", functools.partial(_answer, endpoint), methods=["POST"])
        for endpoint in endpoints
        for way in ("run", "api")
        for end in ("", "/")
    ]


async def _answer(endpoint: Endpoint, request: Request) -> Response:
    try:
        kind = request.headers.get("content-type", "")  # what is not JSON, a page of another host could send unasked
        values = _values(endpoint, await request.body() if kind.startswith("application/json") else b"")
        return _json({"data": [await run_in_threadpool(endpoint, *values)]}, 200)
    except CogVideoError as error:
        return _json({"error": f"{error.en} / {error.zh}"}, 422)
    except Exception:
        log.exception("%s failed", endpoint.__name__)
        return _json({"error": None}, 500)


def _values(endpoint: Endpoint, body: bytes) -> tuple[Any, ...]:
    """The arguments that a body holds. Raises RequestError where it is something else, or holds too many or too few."""
    try:
        given = json.loads(body)["data"]
        if not isinstance(given, list):
            raise TypeError("data is no list")
        return inspect.signature(endpoint).bind(*given).args
    except (TypeError, ValueError, LookupError, RecursionError) as error:
        names = ", ".join(inspect.signature(endpoint).parameters)
        raise RequestError(
            f'请求无法识别：请以 application/json 发送 {{"data": [...]}}，依次为 {names}。',
            f'This request cannot be understood: send {{"data": [...]}} as application/json, in this order: {names}.',
        ) from error


def _json(value: object, status: int) -> Response:
    """In ASCII: what a stranger sent may hold characters that cannot be encoded."""
    return Response(json.dumps(value), status, media_type="application/json")


GRADIOS_OWN = ("/call/", "/run/", "/queue/", "/upload")
"""Parts of the addresses that Gradio answers; a fault anywhere else is one of ours, and stays one."""

log = logging.getLogger(__name__)


async def malformed(request: Request, error: Exception) -> Response:
    """The answer to a request in whose reading `error` was raised; raises it again where the fault is ours."""
    if not any(part in request.url.path for part in GRADIOS_OWN):
        raise error
    log.warning("refused %s %s: %s: %s", request.method, request.url.path, type(error).__name__, error)
    sentence = (
        "请求无法识别：请对照 /gradio_api/openapi.json 检查地址和参数。"
        " / This request cannot be understood: compare its address and its parameters with /gradio_api/openapi.json."
    )
    return JSONResponse({"detail": sentence, "reason": str(error)}, 422)


REQUEST_PARSE_ERRORS = (TypeError, ValueError, LookupError, AttributeError)
"""What Gradio raises while it reads such a request."""
