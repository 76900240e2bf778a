"""First use of the published model: download its files if the user agrees."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from cogvideo.cli import console
from cogvideo.errors import WeightsError
from cogvideo.messages import message
from cogvideo.units import format_gigabytes
from cogvideo.weights.catalog import COGVIDEO, WeightPaths
from cogvideo.weights.download import Download

ENVIRONMENT: Final = "COGVIDEO_DOWNLOAD"
"""If this variable is 1, files are downloaded without a question."""

PUBLISHED: Final = "cogvideo"


def ensure_weights(model: str, agreed: bool = False) -> None:
    """Download missing files of the published model. Raises WeightsError, CapacityError, RequestError.

    `agreed`: download without a question. Otherwise a question is printed if this is the only process and it has a
    terminal. Its answer may name a folder that has the files. Other models need no download.
    """
    paths = WeightPaths.usual()
    if model != PUBLISHED or paths.complete():
        return
    if agreed or os.environ.get(ENVIRONMENT) == "1":
        Download(paths, COGVIDEO, notify=console.notice).run()
        return
    answer = _ask(paths) if _is_interactive() else ""
    if answer.lower() in ("y", "yes", "是"):
        Download(paths, COGVIDEO, notify=console.notice).run()
    elif answer and Path(answer).expanduser().is_dir():
        Download(paths, COGVIDEO, Path(answer).expanduser(), notify=console.notice).run()
    else:
        names = ", ".join(file.installed for file in paths.missing())
        raise WeightsError(*message("ensure_weights.files_missing", names=names))


def _is_interactive() -> bool:
    """Return whether a question can be answered: one process, and a terminal for input and output."""
    single = os.environ.get("WORLD_SIZE", "1") == "1"
    return single and sys.stdin.isatty() and sys.stderr.isatty()


def _ask(paths: WeightPaths) -> str:
    gigabytes = format_gigabytes(sum(file.size for file in paths.missing()), 0)
    console.notice(*message("ensure_weights.download_needed", gigabytes=gigabytes, sat=paths.sat))
    print(
        "是否下载？y 是，n 否，或输入已有文件的文件夹 / Download? y, n, or a folder that has the files: ",
        file=sys.stderr,
    )
    try:
        return input().strip()
    except EOFError:
        return ""
