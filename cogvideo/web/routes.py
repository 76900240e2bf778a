"""What the page fetches besides itself: a job as it grows, its files, clips made beforehand, QR codes. No Gradio."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import segno
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cogvideo.config import ASSETS
from cogvideo.errors import RequestError
from cogvideo.jobs.service import JobService
from cogvideo.jobs.watch import JobWatcher
from cogvideo.web import job_json

GALLERY = ASSETS.parent / "examples" / "gallery"
BEAT = 2.0
"""Seconds between two signs of life of an unchanged job; the page connects again after missing two."""
LONGEST_LINK = 600
"""Characters that a QR code is made of at most: more make one that no phone reads from a screen."""


class _StoredFile(FileResponse):
    """A job's file, or 404 where somebody deleted it since it was found: nothing went wrong in the server."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except RuntimeError:
            if Path(self.path).exists():
                raise
            await _not_found()(scope, receive, send)


def routes(jobs: JobService) -> list[Route]:
    """A job as it grows and its files, for whoever knows its id; the gallery; QR codes; a sign of life."""
    live = JobWatcher(jobs, lambda view: job_json.screen_value(view, jobs.preset_of(view), jobs.preset.name), BEAT)

    async def watch(request: Request) -> Response:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # no proxy may hold anything back
        return StreamingResponse(
            _server_sent(live.watch(request.path_params["job"])), 200, headers, "text/event-stream"
        )

    def now(request: Request) -> Response:
        try:
            value = live.now(request.path_params["job"])
        except RequestError:
            value = {"gone": request.path_params["job"]}
        return JSONResponse(value, headers={"Cache-Control": "no-store"})

    def media(request: Request) -> Response:
        path = jobs.file(request.path_params["job"], request.path_params["name"])
        if path is None:
            return _not_found()
        name = f"cogvideo{path.suffix}" if "download" in request.query_params else None
        headers = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
        return _StoredFile(path, headers=headers, filename=name)

    return [
        Route("/watch/{job}", watch),
        Route("/now/{job}", now),
        Route("/media/{job}/{name}", media),
        Route("/gallery/{name}", _gallery_clip),
        Route("/qr", _qr),
        Route("/alive", _alive),
    ]


def load_gallery() -> list[dict[str, Any]]:
    """Clips made beforehand that are really there."""
    index = GALLERY / "gallery.json"
    if not index.is_file():
        return []
    clips: list[dict[str, Any]] = json.loads(index.read_text("utf-8"))
    return [clip for clip in clips if (GALLERY / clip["file"]).is_file()]


def qr_code(link: str) -> str | None:
    """The link as an SVG with its quiet zone, black on white; None where it is too long or no link."""
    if not link.startswith(("http://", "https://")) or len(link) > LONGEST_LINK:
        return None
    drawing = io.BytesIO()
    segno.make_qr(link).save(drawing, kind="svg", scale=4, light="#fff", xmldecl=False)
    return drawing.getvalue().decode()


def _qr(request: Request) -> Response:
    code = qr_code(request.query_params.get("link", ""))
    return Response(code, media_type="image/svg+xml") if code else Response("no link", 404)


def _not_found() -> Response:
    return Response("not found", 404)


def _gallery_clip(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in {clip["file"] for clip in load_gallery()}:
        return _not_found()
    return FileResponse(GALLERY / Path(name).name, headers={"Cache-Control": "public, max-age=86400"})


def _alive(_: Request) -> Response:
    return JSONResponse({"alive": True}, headers={"Cache-Control": "no-store"})


async def _server_sent(texts: AsyncIterator[str]) -> AsyncIterator[str]:
    """Texts as server-sent events; "" becomes the event `beat`."""
    yield "retry: 1000\n\n"
    async for text in texts:
        yield f"data: {text}\n\n" if text else "event: beat\ndata:\n\n"
