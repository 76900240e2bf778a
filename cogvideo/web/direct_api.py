"""Endpoints in one request: POST /gradio_api/run/make_video with {"data": [...]}, answered with the result.

Gradio serves these addresses too, but answers invalid requests with an internal error and no message. Here they get
status 422 and a message. Trailing arguments may be omitted. No Gradio.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cogvideo.errors import CogVideoError, RequestError
from cogvideo.messages import message
from cogvideo.web.api import Endpoint, argument_names

log = logging.getLogger(__name__)


class DirectCall(BaseModel):
    """The body of a direct call. Other keys, such as Gradio's `session_hash`, are ignored."""

    data: list[Any]
    """The arguments in order."""


def direct_routes(endpoints: Iterable[Endpoint]) -> list[Route]:
    """Return the routes of direct calls, under the same addresses as Gradio's."""
    return [
        Route(f"/gradio_api/{way}/{endpoint.__name__}{end}", functools.partial(_answer, endpoint), methods=["POST"])
        for endpoint in endpoints
        for way in ("run", "api")
        for end in ("", "/")
    ]


async def _answer(endpoint: Endpoint, request: Request) -> Response:
    try:
        call = _parse(request.headers.get("content-type", ""), await request.body(), argument_names(endpoint))
        return JSONResponse({"data": [await run_in_threadpool(endpoint, *call.data)]}, 200)
    except CogVideoError as error:
        return JSONResponse({"error": f"{error.en} / {error.zh}"}, 422)
    except Exception:
        log.exception("%s failed", endpoint.__name__)
        return JSONResponse({"error": None}, 500)


def _parse(content_type: str, body: bytes, names: list[str]) -> DirectCall:
    """Parse a body. Raises RequestError for another content type, invalid JSON or a missing list `data`."""
    try:
        # Browsers send other content types to foreign hosts without asking them first.
        return DirectCall.model_validate_json(body if content_type.startswith("application/json") else b"")
    except ValidationError as error:
        raise RequestError(*message("direct_api.invalid_request", names=", ".join(names))) from error


GRADIO_ADDRESSES = ("/call/", "/run/", "/queue/", "/upload")
"""Parts of the addresses whose requests Gradio parses. Errors at all other addresses are errors of this program."""
REQUEST_PARSE_ERRORS = (TypeError, ValueError, LookupError, AttributeError)
"""Errors that Gradio's own routes raise for invalid requests, such as an unknown endpoint or argument."""


async def malformed(request: Request, error: Exception) -> Response:
    """Answer a request that Gradio could not parse with status 422. Raises `error` again at other addresses."""
    if not any(part in request.url.path for part in GRADIO_ADDRESSES):
        raise error
    log.warning("refused %s %s: %s: %s", request.method, request.url.path, type(error).__name__, error)
    message = (
        "请求格式无效。请对照 /gradio_api/openapi.json 检查地址和参数。"
        " / The request is not valid. Compare its address and arguments with /gradio_api/openapi.json."
    )
    return JSONResponse({"detail": message, "reason": str(error)}, 422)
