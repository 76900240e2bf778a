"""A video file, or a folder of pictures -> frames uint8 [F, H, W, 3] of the final size, and the seconds they span.

The window is the longest that the clip fills (4, 2, 1 or 0.5 seconds from its start), which is the lowest frame rate
that still gives five frames; F is 5, 9, 17 or 33, as many as the source has different frames for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from cogvideo.config import DURATIONS, FRAME_COUNTS
from cogvideo.errors import RequestError

VIDEO_SUFFIXES = frozenset({".mp4", ".gif", ".webm", ".mov", ".mkv", ".avi", ".m4v"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_SLACK = 0.99
"""Frame rates such as 29.97 count as the round number they stand for."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Window:
    """Which part of a clip is used, and how many frames of it."""

    seconds: float
    frames: int

    @property
    def rate(self) -> float:
        """Frames a second."""
        return (self.frames - 1) / self.seconds


def choose_window(length: float, rate: float) -> Window:
    """The window of a clip of `length` seconds with `rate` frames a second. Raises RequestError where none fits."""
    for seconds in DURATIONS:
        counts = [n for n in FRAME_COUNTS if (n - 1) / seconds * _SLACK <= rate]
        if counts and seconds * _SLACK <= length:
            return Window(seconds, counts[-1])
    shortest = DURATIONS[-1]
    raise RequestError(
        f"片段太短：{length:.2f} 秒、每秒 {rate:.3g} 帧，取不出五帧；至少需要 {shortest} 秒、每秒 {4 / shortest:g} 帧，"
        "帧率更低则需更长。",
        f"The clip is too short: {length:.2f} s at {rate:.3g} frames a second give no five frames; it takes at least "
        f"{shortest} s at {4 / shortest:g} frames a second, or longer at fewer.",
    )


def read_clip(path: Path, size: tuple[int, int], image_rate: float) -> tuple[Pixels, float]:
    """The frames of a clip, filled up and cropped to `size` (height, width), and the seconds they span.

    `image_rate`: frames a second of a folder of pictures. Raises RequestError for what cannot be used.
    """
    if path.is_dir():
        return _read_pictures(path, size, image_rate)
    if not path.is_file():
        raise RequestError("文件不存在。", "There is no such file.")
    return _read_video(path, size)


def _read_pictures(folder: Path, size: tuple[int, int], rate: float) -> tuple[Pixels, float]:
    files = picture_files(folder)
    window = choose_window(len(files) / rate, rate)
    times = np.arange(window.frames) / window.rate
    chosen = np.minimum(np.rint(times * rate).astype(int), len(files) - 1)
    try:
        return np.stack([_read_picture(files[i], size) for i in chosen]), window.seconds
    except (OSError, ValueError, SyntaxError) as error:
        raise _broken(error) from error


def picture_files(folder: Path) -> list[Path]:
    """The pictures in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _read_picture(path: Path, size: tuple[int, int]) -> Pixels:
    with Image.open(path) as picture:
        return np.asarray(ImageOps.fit(picture.convert("RGB"), size[::-1], Image.Resampling.BICUBIC))


def _read_video(path: Path, size: tuple[int, int]) -> tuple[Pixels, float]:
    try:
        window = choose_window(*_length_and_rate(path))
        pictures = list(islice(_decode(path, size, window.rate), window.frames))
    except (OSError, RuntimeError, StopIteration) as error:
        raise _broken(error) from error
    if len(pictures) < window.frames - 1:
        raise _broken(f"{len(pictures)} / {window.frames}")
    # The last frame's time is where a clip of exactly this length ends.
    pictures += pictures[-1:] * (window.frames - len(pictures))
    return np.stack(pictures), window.seconds


def _length_and_rate(path: Path) -> tuple[float, float]:
    """Seconds and frames a second of a video, as its header says; counted where it does not."""
    from imageio_ffmpeg import count_frames_and_secs, read_frames

    reader = read_frames(_source(path), input_params=_ONLY_FILES)
    about: dict[str, Any] = next(reader)
    reader.close()
    if about["duration"] > 0 and about["fps"] > 0:
        return about["duration"], about["fps"]
    frames, seconds = count_frames_and_secs(str(path))
    return seconds, frames / max(seconds, 1e-6)


def _decode(path: Path, size: tuple[int, int], rate: float) -> Iterator[Pixels]:
    """What is on the screen at 0, 1 / rate, 2 / rate ... seconds."""
    from imageio_ffmpeg import read_frames

    height, width = size
    fill = f"scale={width}:{height}:force_original_aspect_ratio=increase:flags=bicubic,crop={width}:{height}"
    filters = ["-vf", f"fps=fps={rate}:round=up,{fill}", "-an", "-sn"]
    reader = read_frames(_source(path), input_params=_ONLY_FILES, output_params=filters)
    next(reader)
    try:
        for picture in reader:
            yield np.frombuffer(picture, np.uint8).reshape(height, width, 3)
    finally:
        reader.close()


_ONLY_FILES = ["-protocol_whitelist", "file"]  # a playlist in disguise must not make ffmpeg fetch anything


def _source(path: Path) -> str:
    return f"file:{path.absolute()}"


def _broken(reason: object) -> RequestError:
    text = str(reason).strip().splitlines()
    last = text[-1][:200] if text else type(reason).__name__
    return RequestError(f"无法解码（{last}）。", f"It cannot be decoded ({last}).")
