"""A folder of little clips with captions, one of each kind that `prepare` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cogvideo.media.video import write_video

MOTIONS = ("向下", "向右", "向左")
"""In the order in which their files are found."""

_WAYS = {"向下": (1, 0), "向右": (0, 1), "向左": (0, -1)}


def moving(motion: str) -> npt.NDArray[Any]:
    """A white square on black that moves for 33 frames: uint8 [33, 48, 48, 3]."""
    frames = np.zeros((33, 48, 48, 3), np.uint8)
    down, right = _WAYS[motion]
    for number, frame in enumerate(frames):
        way = number - 16
        y, x = 16 + down * way, 16 + right * way
        frame[y : y + 16, x : x + 16] = 255
    return frames


def write_pictures(folder: Path, frames: npt.NDArray[Any]) -> None:
    folder.mkdir()
    for number, picture in enumerate(frames):
        Image.fromarray(picture).save(folder / f"{number:03}.png")


def write_clips(folder: Path) -> Path:
    """A folder of pictures, a gif and an mp4, each with its caption beside it."""
    folder.mkdir()
    write_pictures(folder / "向下", moving("向下"))
    write_video(folder / "向右.gif", moving("向右"), 4.0)
    write_video(folder / "向左.mp4", moving("向左"), 4.0)
    for motion in MOTIONS:
        (folder / f"{motion}.txt").write_text(f"一个方块{motion}\n", encoding="utf-8")
    return folder
