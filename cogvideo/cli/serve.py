"""`python app.py`: options of the page's server, and its start."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from cogvideo.cli import console
from cogvideo.config import PRESETS
from cogvideo.jobs.queue import Limits
from cogvideo.jobs.service import open_jobs
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from cogvideo.web.server import data_folder, free_port, serve
from cogvideo.web.spaces import register_zero_gpu


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the page until it is interrupted. Raises CogVideoError."""
    options = parser().parse_args(arguments)
    register_zero_gpu()
    port = free_port(options.host, options.port, options.any_port)
    limits = Limits(
        abandoned_seconds=options.drop_abandoned or None,
        idle_seconds=60 * options.unload_after or None,
        keep_bytes=int(options.keep_gb * 2**30),
    )
    place = (options.device, options.eight_bit, options.offload, options.memory)
    jobs = open_jobs(data_folder(options.data), options.model, limits, *place)
    try:
        ui = serve(jobs, options.host, port, options.root_path)
        jobs.start(
            preload=jobs.preset.name == "mini" if options.preload is None else options.preload
        )  # after the page: reading the model must not keep it waiting
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
    """The options of `python app.py` and `cogvideo serve`; defaults come from the environment, which hosts set."""
    called = {"prog": "python app.py"} if Path(sys.argv[0]).name == "app.py" else {}
    about = "在浏览器里把中文变成视频。 Chinese text becomes video, in the browser."
    options = console.Parser("serve", description=about, **called)
    on_space = bool(os.environ.get("SPACE_ID"))
    host = os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if on_space else "127.0.0.1")
    port = os.environ.get("GRADIO_SERVER_PORT") or os.environ.get("PORT") or "7860"
    options.add_argument("--host", default=host, help="address to serve at; 0.0.0.0: for other machines too")
    options.add_argument("--port", type=int, default=port)
    options.add_argument("--any-port", action="store_true", help="take the next free port where this one is taken")
    options.add_argument(
        "--model", help=f"{', '.join(PRESETS)} (default: $COGVIDEO_MODEL, else cogvideo where it can run, else mini)"
    )
    options.add_argument("--memory", help=f"{', '.join(MEMORY_PRESETS)} (default: $COGVIDEO_MEMORY, else what fits)")
    options.add_argument(
        "--device",
        default="cpu" if os.environ.get("SPACES_ZERO_GPU") else None,  # there a card is lent to single calls alone
        help="cpu, cuda, cuda:1 (default: cuda where there is one; on a ZeroGPU Space cpu)",
    )
    options.add_argument("--eight-bit", action="store_true", help="keep the weights in 8 bits: less memory, slower")
    options.add_argument("--offload", action="store_true", help="matrices come from host memory one by one: slowest")
    options.add_argument("--data", type=Path, help="folder of the queue and the clips (default: ./data)")
    options.add_argument("--keep-gb", type=float, default=2.0, help="finished clips kept, oldest go first (default: 2)")
    options.add_argument(
        "--unload-after",
        type=float,
        default=30.0,
        metavar="MINUTES",
        help="let go of the model's memory after so long without work; 0: never (default: 30)",
    )
    options.add_argument(
        "--drop-abandoned",
        type=float,
        default=120.0 if on_space else 0.0,
        metavar="SECONDS",
        help="drop waiting videos that nobody has looked at for so long; 0: never (default: never; on a Space 120)",
    )
    options.add_argument("--root-path", help="path below which a proxy serves the page, such as /video")
    options.add_argument(
        "--preload",
        action=argparse.BooleanOptionalAction,
        help="load the model now, not with the first prompt (default: for mini)",
    )
    options.add_argument(
        "--browser",
        action=argparse.BooleanOptionalAction,
        default=_has_desktop() and not on_space,
        help="open the page in a browser",
    )
    return options


def _has_desktop() -> bool:
    """Whether somebody sits in front of this machine, as far as can be told; never start a browser in a terminal."""
    if not sys.stdout.isatty():
        return False
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
