"""The published model, wanted for the first time: its files are fetched where whoever wants it agrees.

In: a model's name. Out: nothing; afterwards its files are there, or an error says how to get them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from cogvideo.cli import console
from cogvideo.errors import WeightsError
from cogvideo.weights.catalog import COGVIDEO, WeightPaths
from cogvideo.weights.download import Download

ENVIRONMENT: Final = "COGVIDEO_DOWNLOAD"
"""Set to 1: agreed, without a question."""

PUBLISHED: Final = "cogvideo"


def ensure_weights(model: str, agreed: bool = False) -> None:
    """Returns at once for any other model, and where all is there. Raises WeightsError, CapacityError, RequestError.

    `agreed`: fetch without asking. Otherwise a person at a terminal is asked, and may name a folder instead; of several
    processes started together, and where nobody sits at a terminal, none asks.
    """
    places = WeightPaths.usual()
    if model != PUBLISHED or places.complete():
        return
    if agreed or os.environ.get(ENVIRONMENT) == "1":
        Download(places, COGVIDEO, notify=console.notice).run()
        return
    answer = _ask(places) if _somebody_there() else ""
    if answer.lower() in ("y", "yes", "是"):
        Download(places, COGVIDEO, notify=console.notice).run()
    elif answer and Path(answer).expanduser().is_dir():
        Download(places, COGVIDEO, Path(answer).expanduser(), notify=console.notice).run()
    else:
        names = ", ".join(file.installed for file in places.missing())
        raise WeightsError(
            f"模型 cogvideo 的文件还不全（缺 {names}）：请运行 python -m cogvideo download cogvideo，"
            f"或加 --download，或改用 --model mini。",
            f"The model cogvideo lacks files ({names}): run python -m cogvideo download cogvideo, or add --download, "
            "or use --model mini.",
        )


def _somebody_there() -> bool:
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return alone and sys.stdin.isatty() and sys.stderr.isatty()


def _ask(places: WeightPaths) -> str:
    gigabytes = sum(file.size for file in places.missing()) / 1e9
    console.notice(
        f"模型 cogvideo 还不在这里。需要下载约 {gigabytes:.0f} GB 到 {places.sat}，可中断后继续。",
        f"The model cogvideo is not here yet: {gigabytes:.0f} GB to fetch to {places.sat}, in several goes if need be.",
    )
    print(
        "下载？y 是，n 否，或输入已有文件的文件夹 / Fetch them? y, n, or a folder that has the files: ", file=sys.stderr
    )
    try:
        return input().strip()
    except EOFError:
        return ""
