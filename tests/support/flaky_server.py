"""A file server on 127.0.0.1 that misbehaves on request: `server.faults[path]` is what it does to the next requests.

Nothing here sleeps: where a server has to be silent, it waits for an event.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FlakyServer

    def do_HEAD(self) -> None:
        """As Hugging Face answers: who knows the commit and the ETag is a hub."""
        if (data := self.server.files.get(self.path)) is None:
            return self.say(404, b"")
        return self.say(200, b"", **hub_headers(data), **{"Content-Length": str(len(data))})

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        self.server.authorizations.append(self.headers.get("Authorization"))
        data = self.server.files.get(self.path)
        faults = self.server.faults.get(self.path, [])
        if faults:
            return faults.pop(0)(self, data or b"")
        return self.say(404, b"not here") if data is None else serve(self, data)

    def say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class FlakyServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.authorizations: list[str | None] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Who hangs up early, as the downloads do, is no error worth a traceback."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def ranges(self, path: str) -> list[str | None]:
        return [wanted for asked, wanted in self.requests if asked == path]


@contextmanager
def flaky_server() -> Iterator[FlakyServer]:
    server = FlakyServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def hub_headers(data: bytes) -> dict[str, str]:
    return {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "a" * 40, "Accept-Ranges": "bytes"}


def _asked(handler: Handler, data: bytes) -> tuple[bytes, int, dict[str, str]]:
    """The body, the status and the headers, as the request's Range has it."""
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
    if not wanted:
        return data, 200, {"Content-Length": str(len(data))} | hub_headers(data)
    start = int(wanted[1])
    end = min(len(data), int(wanted[2]) + 1 if wanted[2] else len(data))
    if start >= len(data):
        return b"", 416, {"Content-Length": "0", "Content-Range": f"bytes */{len(data)}"}
    headers = {"Content-Length": str(end - start), "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
    return data[start:end], 206, headers | hub_headers(data)


def _start(handler: Handler) -> int:
    return int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])


def serve(handler: Handler, data: bytes) -> None:
    """As a good server does."""
    body, status, headers = _asked(handler, data)
    handler.say(status, body, **headers)


def cut_after(count: int) -> Fault:
    """Promises all, sends `count` bytes and hangs up."""

    def fault(handler: Handler, data: bytes) -> None:
        body, status, headers = _asked(handler, data)
        handler.say(status, body[:count], **headers)
        handler.cut()

    return fault


def silent_after(count: int, until: threading.Event) -> Fault:
    """Sends `count` bytes and then nothing, however long one waits, until the event."""

    def fault(handler: Handler, data: bytes) -> None:
        body, status, headers = _asked(handler, data)
        handler.say(status, body[:count], **headers)
        handler.wfile.flush()
        until.wait(60)
        handler.cut()

    return fault


def slowly(handler: Handler, data: bytes) -> None:
    """Many small pieces, with a wait before each."""
    body, status, headers = _asked(handler, data)
    handler.say(status, b"", **headers)
    pause = threading.Event()
    for at in range(0, len(body), -(-len(body) // 20)):
        pause.wait(0.05)
        handler.wfile.write(body[at : at + -(-len(body) // 20)])
        handler.wfile.flush()


def ignores_ranges(handler: Handler, data: bytes) -> None:
    handler.say(200, data)


def web_page(handler: Handler, data: bytes) -> None:
    handler.say(200, b"<!DOCTYPE html><html>moved</html>", **{"Content-Type": "text/html; charset=utf-8"})


def web_page_in_disguise(handler: Handler, data: bytes) -> None:
    handler.say(200, b"<!DOCTYPE html>".ljust(len(data)), **{"Content-Type": "application/zip"})


def says_longer(handler: Handler, data: bytes) -> None:
    """Promises more bytes than there are, for ever."""
    start, total = _start(handler), len(data) + 1000
    headers = {"Content-Length": str(total - start), "Content-Range": f"bytes {start}-{total - 1}/{total}"}
    handler.say(206 if start else 200, data[start:], **headers)
    handler.cut()


def says_shorter(handler: Handler, data: bytes) -> None:
    """Ends too early and calls that the whole file."""
    handler.say(200, data[: len(data) // 2])


def status(code: int) -> Fault:
    return lambda handler, data: handler.say(code, b"")
