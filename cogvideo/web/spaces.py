"""Where and how the page is served: options of the command line, the port, the data folder, the address of links."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from importlib import import_module
from pathlib import Path

from cogvideo.cli import console
from cogvideo.config import MEMORY, PRESETS
from cogvideo.errors import CapacityError, RequestError

log = logging.getLogger(__name__)


def share_base() -> str:
    """Where links should lead: the Space's own page, or, where this is empty, the address the browser sees."""
    space = os.environ.get("SPACE_ID")
    return f"https://huggingface.co/spaces/{space}" if space else ""


def duplicate_link() -> str:
    """Where a visitor of the Space gets one of their own; empty where this is no Space."""
    return f"{base}?duplicate=true" if (base := share_base()) else ""


def claim_card() -> None:
    """Where cards are only lent (a ZeroGPU Space): names a function that takes one, without which the hub starts none.

    Nobody calls it: a lent card stays for a minute, in a process of its own, and `mini` needs none.
    """
    if not os.environ.get("SPACES_ZERO_GPU"):
        return
    try:
        import_module("spaces").GPU(_with_a_card)  # the hub's own package, which it installs itself
    except ImportError:
        log.warning("This is a ZeroGPU Space without the package `spaces`: the hub may stop it.")


def _with_a_card() -> None:
    """What the hub wants to be named."""


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
    options.add_argument("--memory", help=f"{', '.join(MEMORY)} (default: $COGVIDEO_MEMORY, else what fits)")
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
