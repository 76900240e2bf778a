"""The command `serve`, also `python app.py`: options, server and job worker."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from cogvideo.cli import console
from cogvideo.cli.model_options import add_model_options, add_renamed
from cogvideo.jobs.queue import Limits
from cogvideo.jobs.service import open_jobs
from cogvideo.runtime.memory_presets import PlacementOptions
from cogvideo.web.server import data_folder, free_port, serve
from cogvideo.web.spaces import register_zero_gpu


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until interrupted. Raises CogVideoError."""
    options = parser().parse_args(argv)
    register_zero_gpu()
    port = free_port(options.host, options.port, options.find_port)
    limits = Limits(
        abandoned_seconds=options.queue_timeout or None,
        idle_seconds=60 * options.idle_timeout or None,
        keep_bytes=int(options.max_storage_gb * 2**30),
    )
    placement = PlacementOptions(
        options.device, options.memory, options.quantization, "layers" if options.offload else None
    )
    jobs = open_jobs(data_folder(options.data), options.model, limits, placement)
    try:
        ui = serve(jobs, options.host, port, options.root_path)
        # After the page, so that loading the model does not delay it.
        jobs.start(preload=jobs.preset.name == "mini" if options.preload is None else options.preload)
        url = f"http://{'127.0.0.1' if options.host == '0.0.0.0' else options.host}:{port}"
        print(f"打开 / Open: {url}\n停止 / Stop: Ctrl+C", flush=True)
        if options.browser:
            webbrowser.open(url)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            ui.block_thread()
        finally:
            ui.close()
    finally:
        jobs.close()
    return 0


def parser() -> console.Parser:
    """Return the parser of `python app.py` and `cogvideo serve`. Hosts set its defaults through the environment."""
    program = {"prog": "python app.py"} if Path(sys.argv[0]).name == "app.py" else {}
    about = "在浏览器中用中文生成视频。 Generate videos from Chinese text in the browser."
    root = console.Parser("serve", description=about, **program)
    on_space = bool(os.environ.get("SPACE_ID"))
    _add_network_options(root, on_space)
    # ZeroGPU lends a GPU to single calls only.
    add_model_options(root, device="cpu" if os.environ.get("SPACES_ZERO_GPU") else None)
    _add_loading_options(root)
    _add_storage_options(root, on_space)
    root.add_argument(
        "--browser",
        action=argparse.BooleanOptionalAction,
        default=_has_desktop() and not on_space,
        help="open the page in a browser",
    )
    return root


def _add_network_options(root: console.Parser, on_space: bool) -> None:
    host = os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if on_space else "127.0.0.1")
    port = os.environ.get("GRADIO_SERVER_PORT") or os.environ.get("PORT") or "7860"
    root.add_argument("--host", default=host, help="address to listen on; 0.0.0.0 allows other machines")
    root.add_argument("--port", type=int, default=port)
    add_renamed(root, "--find-port", "--any-port", action="store_true", help="use the next free port if in use")
    root.add_argument("--root-path", help="path under which a proxy serves the page, such as /video")


def _add_loading_options(root: console.Parser) -> None:
    root.add_argument(
        "--preload",
        action=argparse.BooleanOptionalAction,
        help="load the model at the start instead of with the first prompt (default: for mini)",
    )
    add_renamed(
        root,
        "--idle-timeout",
        "--unload-after",
        type=float,
        default=30.0,
        metavar="MINUTES",
        help="unload the model after this time without work; 0: never (default: 30)",
    )


def _add_storage_options(root: console.Parser, on_space: bool) -> None:
    root.add_argument("--data", type=Path, help="folder of the queue and the videos (default: ./data)")
    add_renamed(
        root,
        "--max-storage-gb",
        "--keep-gb",
        type=float,
        default=2.0,
        help="GiB of finished videos to keep; the oldest are deleted first (default: 2)",
    )
    add_renamed(
        root,
        "--queue-timeout",
        "--drop-abandoned",
        type=float,
        default=120.0 if on_space else 0.0,
        metavar="SECONDS",
        help="remove queued videos that no page shows for this time; 0: never (default: never; on a Space 120)",
    )


def _has_desktop() -> bool:
    """Return whether a browser can be opened: output is a terminal, and there is a graphical desktop."""
    if not sys.stdout.isatty():
        return False
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
