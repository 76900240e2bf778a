"""HTTP routes of the page: job updates, job files, gallery videos, QR codes. No Gradio."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import segno
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cogvideo.config import ASSETS
from cogvideo.errors import RequestError
from cogvideo.jobs.log_entries import JsonObject
from cogvideo.jobs.service import JobService
from cogvideo.jobs.state import JobState
from cogvideo.jobs.watch import JobWatcher
from cogvideo.web import job_json

GALLERY = ASSETS.parent / "examples" / "gallery"
HEARTBEAT_SECONDS = 2.0
"""Time between two signs of life of an unchanged job. The page reconnects after missing two."""
MAX_LINK_LENGTH = 600
"""Maximum length of a link in a QR code; phones cannot read longer ones from a screen."""


class _StoredFile(FileResponse):
    """A job's file, or 404 if it was deleted after it was found."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except RuntimeError:
            if Path(self.path).exists():
                raise
            await _not_found()(scope, receive, send)


def routes(jobs: JobService) -> list[Route]:
    """Return the routes. Job updates and files need only the job's id."""

    def screen_value(state: JobState) -> JsonObject:
        return job_json.screen_value(state, jobs.models.preset(state.model), jobs.preset.name)

    watcher = JobWatcher(jobs, screen_value, HEARTBEAT_SECONDS)

    async def watch(request: Request) -> Response:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # proxies must not buffer the stream
        return StreamingResponse(
            _server_sent(watcher.watch(request.path_params["job"])), 200, headers, "text/event-stream"
        )

    def now(request: Request) -> Response:
        try:
            value = watcher.snapshot(request.path_params["job"])
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
        Route("/gallery/{name}", _gallery_video),
        Route("/qr", _qr),
        Route("/alive", _alive),
    ]


def load_gallery() -> list[JsonObject]:
    """Return the gallery videos whose files exist."""
    index = GALLERY / "gallery.json"
    if not index.is_file():
        return []
    videos: list[JsonObject] = json.loads(index.read_text("utf-8"))
    return [video for video in videos if (GALLERY / video["file"]).is_file()]


def qr_code(link: str) -> str | None:
    """Return a QR code as SVG, black on white with a quiet zone. Returns None if it is too long or not a link."""
    if not link.startswith(("http://", "https://")) or len(link) > MAX_LINK_LENGTH:
        return None
    svg = io.BytesIO()
    segno.make_qr(link).save(svg, kind="svg", scale=4, light="#fff", xmldecl=False)
    return svg.getvalue().decode()


def _qr(request: Request) -> Response:
    code = qr_code(request.query_params.get("link", ""))
    return Response(code, media_type="image/svg+xml") if code else Response("no link", 404)


def _not_found() -> Response:
    return Response("not found", 404)


def _gallery_video(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in {video["file"] for video in load_gallery()}:
        return _not_found()
    return FileResponse(GALLERY / Path(name).name, headers={"Cache-Control": "public, max-age=86400"})


def _alive(_: Request) -> Response:
    return JSONResponse({"alive": True}, headers={"Cache-Control": "no-store"})


async def _server_sent(texts: AsyncIterator[str]) -> AsyncIterator[str]:
    """Format texts as server-sent events; "" becomes the event `beat`."""
    yield "retry: 1000\n\n"
    async for text in texts:
        yield f"data: {text}\n\n" if text else "event: beat\ndata:\n\n"
