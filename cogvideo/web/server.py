"""The web server: Gradio options, theme, port and data folder."""

from __future__ import annotations

import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from gradio.route_utils import FnIndexInferError

from cogvideo.errors import CapacityError, RequestError
from cogvideo.jobs.service import JobService
from cogvideo.messages import message
from cogvideo.web.api import endpoints
from cogvideo.web.direct_api import REQUEST_PARSE_ERRORS, direct_routes, malformed
from cogvideo.web.page import build_ui
from cogvideo.web.routes import routes
from cogvideo.web.strings import FOLDER, asset

SESSIONS = 100
"""Number of visitors whose components Gradio keeps: 150 KB each, rebuilt in 20 ms. The page stores nothing there."""
FONTS = ["system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]


def serve(jobs: JobService, host: str, port: int, root_path: str | None = None) -> gr.Blocks:
    """Serve the page in the background and return it; `close()` ends it. Raises OSError if the port is in use."""
    ui = build_ui(jobs)
    # By default Gradio reports every queued call to every other one, and recomputes its statistics after each call.
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000")
    ui.queue(default_concurrency_limit=None, api_open=True, status_update_rate=10)
    # Gradio checks its own server over HTTP with a timeout of 3 seconds; the request must not go through a proxy.
    excluded = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = ",".join([*([excluded] if excluded else []), "localhost,127.0.0.1,::1", host])
    ui.launch(
        _frontend=False,
        server_name=host,
        server_port=port,
        root_path=root_path,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        mcp_server=find_spec("mcp") is not None,
        footer_links=[],
        run_history=False,  # it stores prompts in the browser and can send them to another host
        enable_monitoring=False,
        state_session_capacity=SESSIONS,
        max_file_size="64mb",
        favicon_path=str(FOLDER / "favicon.svg"),
        app_kwargs={
            "routes": [*routes(jobs), *direct_routes(endpoints(jobs))],
            "exception_handlers": dict.fromkeys((*REQUEST_PARSE_ERRORS, FnIndexInferError), malformed),
        },
        **_appearance(),
    )
    return ui


def _appearance() -> dict[str, Any]:
    """Return theme, styles and scripts. The icon is inline: Gradio's link to it ignores the root path."""
    icon = f"data:image/svg+xml,{quote(asset('favicon.svg'))}"
    return {
        "theme": gr.themes.Base(font=FONTS, font_mono=["ui-monospace", "monospace"], radius_size="lg"),
        "css": asset("page.css"),
        "head": f'<link rel="icon" href="{icon}"><script>{asset("page.js")}{asset("follow.js")}</script>',
    }


def free_port(host: str, port: int, search: bool) -> int:
    """Return `port`, or with `search` the first usable port of the next 50.

    Raises RequestError for a number outside 1..65535, CapacityError if no port is usable.
    """
    if not 1 <= port <= 65535:
        raise RequestError(*message("server.invalid_port", port=port))
    for candidate in range(port, min(port + 50, 65536) if search else port + 1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
            return candidate
    raise CapacityError(*message("server.port_in_use", host=host, port=port))


def data_folder(chosen: Path | None) -> Path:
    """Create and return the folder of database and videos.

    It is `chosen`, or $COGVIDEO_DATA, or ./data, or the user's data folder if the current folder is read-only. Raises
    CapacityError if it cannot be created.
    """
    folder = chosen or Path(os.environ.get("COGVIDEO_DATA") or "data")
    explicit = bool(chosen or os.environ.get("COGVIDEO_DATA"))
    if not explicit and not os.access(folder if folder.exists() else Path.cwd(), os.W_OK):
        folder = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "cogvideo"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CapacityError(*message("server.data_folder_unusable", folder=folder, strerror=error.strerror)) from error
    return folder
