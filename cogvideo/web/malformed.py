"""What programs send that Gradio trips over: a sentence and status 422 in place of an internal error. No Gradio.

Bodies that lack a parameter or have one too many, endpoints that do not exist, uploads that are no file.
"""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

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


TRIPS = (TypeError, ValueError, LookupError, AttributeError)
"""What Gradio raises while it reads such a request."""
