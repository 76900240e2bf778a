"""A reverse proxy that serves another server below a path, as nginx does: the path is taken off, answers stream."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

HOP = {"connection", "content-length", "content-encoding", "transfer-encoding", "keep-alive"}


@contextmanager
def below(path: str, target: str, port: int) -> Iterator[str]:
    """Serves `target` (an address that ends in /) below `path` of this machine's `port`; yields the new address."""
    client = httpx.AsyncClient(timeout=None)

    async def forward(request: Request) -> Response:
        headers = {name: value for name, value in request.headers.items() if name not in HOP}
        url = f"{target}{request.path_params['rest']}?{request.url.query}"
        call = client.build_request(request.method, url, headers=headers, content=await request.body())
        answer = await client.send(call, stream=True)

        async def body() -> AsyncIterator[bytes]:
            try:
                async for part in answer.aiter_bytes():
                    yield part
            finally:
                await answer.aclose()

        kept = {name: value for name, value in answer.headers.items() if name not in HOP}
        return StreamingResponse(body(), answer.status_code, kept)

    route = Route(f"{path}/{{rest:path}}", forward, methods=["GET", "POST", "HEAD"])
    icon = Route("/favicon.ico", lambda _: Response(status_code=204))  # asked of the host before the page is read
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=[route, icon]), "127.0.0.1", port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.02)
    try:
        yield f"http://127.0.0.1:{port}{path}/"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
