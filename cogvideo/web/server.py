"""The page's server: theme, free port, data folder and start."""

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
from cogvideo.web.api import endpoints
from cogvideo.web.components import asset
from cogvideo.web.direct_api import REQUEST_PARSE_ERRORS, direct, malformed
from cogvideo.web.page import build_ui
from cogvideo.web.routes import routes
from cogvideo.web.strings import FOLDER

SESSIONS = 100
"""Visitors whose components Gradio remembers. The page keeps nothing there; each costs 150 KB and is made in 20 ms."""
FONTS = ["system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]


def serve(jobs: JobService, host: str, port: int, root_path: str | None = None) -> gr.Blocks:
    """Serves the page in the background and returns it; `close()` ends it. Raises OSError where the port is taken."""
    ui = build_ui(jobs)
    # Without these Gradio tells each waiting call about every other one, and sums all calls up after each.
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000")
    ui.queue(default_concurrency_limit=None, api_open=True, status_update_rate=10)
    # Gradio asks its own server whether it is there: no proxy knows, and a busy machine takes more than its 3 seconds.
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = ",".join([*([others] if others else []), "localhost,127.0.0.1,::1", host])
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
        run_history=False,  # Gradio's own keeps prompts in the browser and offers to send them to another host
        enable_monitoring=False,
        state_session_capacity=SESSIONS,
        max_file_size="64mb",
        favicon_path=str(FOLDER / "favicon.svg"),
        app_kwargs={
            "routes": [*routes(jobs), *direct(endpoints(jobs))],
            "exception_handlers": dict.fromkeys((*REQUEST_PARSE_ERRORS, FnIndexInferError), malformed),
        },
        **_looks(),
    )
    return ui


def _looks() -> dict[str, Any]:
    """Theme, styles and scripts of the page. Its icon is right below any path; Gradio's begins at the host."""
    icon = f"data:image/svg+xml,{quote(asset('favicon.svg'))}"
    return {
        "theme": gr.themes.Base(font=FONTS, font_mono=["ui-monospace", "monospace"], radius_size="lg"),
        "css": asset("page.css"),
        "head": f'<link rel="icon" href="{icon}"><script>{asset("page.js")}{asset("follow.js")}</script>',
    }


def free_port(host: str, port: int, search: bool) -> int:
    """`port`, or with `search` the first of the 50 from it on that can be used at `host`.

    Raises RequestError for a number that is no port, CapacityError where none can be used.
    """
    if not 1 <= port <= 65535:
        raise RequestError(
            f"端口 {port} 不存在：请用 --port 指定 1 到 65535 之间的整数。",
            f"There is no port {port}: give --port a whole number from 1 to 65535.",
        )
    for candidate in range(port, min(port + 50, 65536) if search else port + 1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
            return candidate
    raise CapacityError(
        f"{host} 的端口 {port} 不可用，可能已有一个服务在运行：请关闭它，"
        "或用 --port 换一个端口（--any-port 自动寻找）。",
        f"Port {port} of {host} cannot be used, perhaps another server runs there: "
        "close it, or choose another with --port (--any-port looks for one).",
    )


def data_folder(chosen: Path | None) -> Path:
    """The folder of queue and clips: as chosen, or here, or, where here is read-only, in the user's own data folder."""
    folder = chosen or Path(os.environ.get("COGVIDEO_DATA") or "data")
    explicit = bool(chosen or os.environ.get("COGVIDEO_DATA"))
    if not explicit and not os.access(folder if folder.exists() else Path.cwd(), os.W_OK):
        folder = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "cogvideo"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CapacityError(
            f"无法使用数据文件夹 {folder}（{error.strerror}）：请用 --data 指定一个可写的文件夹。",
            f"The data folder {folder} cannot be used ({error.strerror}): name one that can be written with --data.",
        ) from error
    return folder
