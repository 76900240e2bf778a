"""Reading of video files and of folders of images: frames uint8 [F, H, W, 3] of the final size, and their duration.

The window is the longest of 4, 2, 1 and 0.5 seconds that the clip fills: the lowest frame rate with five frames. F is
5, 9, 17 or 33, as many as the source has different frames for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cogvideo.config import DURATIONS, FRAME_COUNTS
from cogvideo.errors import RequestError
from cogvideo.events import Frames
from cogvideo.messages import message

VIDEO_SUFFIXES = frozenset({".mp4", ".gif", ".webm", ".mov", ".mkv", ".avi", ".m4v"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_SLACK = 0.99
"""Tolerance on rates and durations: 29.97 frames a second count as 30."""


@dataclass(frozen=True)
class Window:
    """The part of a clip that is used, from its start, and the number of its frames."""

    seconds: float
    frames: int

    @property
    def rate(self) -> float:
        """Frames a second."""
        return (self.frames - 1) / self.seconds


def choose_window(length: float, rate: float) -> Window:
    """Return the window of a clip of `length` seconds with `rate` frames a second. Raises RequestError if none fits."""
    for seconds in DURATIONS:
        counts = [n for n in FRAME_COUNTS if (n - 1) / seconds * _SLACK <= rate]
        if counts and seconds * _SLACK <= length:
            return Window(seconds, counts[-1])
    shortest = DURATIONS[-1]
    raise RequestError(
        *message("video_reader.clip_too_short", length=length, rate=rate, shortest=shortest, shortest_2=4 / shortest)
    )


def read_clip(path: Path, size: tuple[int, int], image_rate: float) -> tuple[Frames, float]:
    """Read the frames of a clip, resized and cropped to `size` (height, width), and their duration in seconds.

    `image_rate` is the frame rate of a folder of images. Raises RequestError if the clip cannot be used.
    """
    if path.is_dir():
        return _read_images(path, size, image_rate)
    if not path.is_file():
        raise RequestError(*message("video_reader.file_missing"))
    return _read_video(path, size)


def _read_images(folder: Path, size: tuple[int, int], rate: float) -> tuple[Frames, float]:
    files = image_files(folder)
    window = choose_window(len(files) / rate, rate)
    times = np.arange(window.frames) / window.rate
    chosen = np.minimum(np.rint(times * rate).astype(int), len(files) - 1)
    try:
        return np.stack([_read_image(files[i], size) for i in chosen]), window.seconds
    except (OSError, ValueError, SyntaxError) as error:
        raise _broken(error) from error


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _read_image(path: Path, size: tuple[int, int]) -> Frames:
    with Image.open(path) as image:
        return np.asarray(ImageOps.fit(image.convert("RGB"), size[::-1], Image.Resampling.BICUBIC))


def _read_video(path: Path, size: tuple[int, int]) -> tuple[Frames, float]:
    try:
        length, rate = _length_and_rate(path)
        window = choose_window(length, rate)
        frames = list(islice(_decode(path, size, window.rate), window.frames))
    except (OSError, RuntimeError, StopIteration) as error:
        raise _broken(error) from error
    if len(frames) < window.frames - 1:
        raise _broken(f"{len(frames)} / {window.frames}")
    # A clip of exactly this length ends at the time of its last frame, which ffmpeg may leave out.
    frames += frames[-1:] * (window.frames - len(frames))
    return np.stack(frames), window.seconds


def _length_and_rate(path: Path) -> tuple[float, float]:
    """Return seconds and frame rate of a video from its header, or by counting frames if the header lacks them."""
    from imageio_ffmpeg import count_frames_and_secs, read_frames

    reader = read_frames(_source(path), input_params=_ONLY_FILES)
    about: dict[str, Any] = next(reader)
    reader.close()
    if about["duration"] > 0 and about["fps"] > 0:
        return about["duration"], about["fps"]
    frames, seconds = count_frames_and_secs(str(path))
    return seconds, frames / max(seconds, 1e-6)


def _decode(path: Path, size: tuple[int, int], rate: float) -> Iterator[Frames]:
    """Yield the frames [H, W, 3] that are visible at 0, 1 / rate, 2 / rate ... seconds."""
    from imageio_ffmpeg import read_frames

    height, width = size
    fill = f"scale={width}:{height}:force_original_aspect_ratio=increase:flags=bicubic,crop={width}:{height}"
    filters = ["-vf", f"fps=fps={rate}:round=up,{fill}", "-an", "-sn"]
    reader = read_frames(_source(path), input_params=_ONLY_FILES, output_params=filters)
    next(reader)
    try:
        for frame in reader:
            yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
    finally:
        reader.close()


_ONLY_FILES = ["-protocol_whitelist", "file"]  # a playlist under another suffix must not cause downloads


def _source(path: Path) -> str:
    return f"file:{path.absolute()}"


def _broken(reason: object) -> RequestError:
    text = str(reason).strip().splitlines()
    last = text[-1][:200] if text else type(reason).__name__
    return RequestError(*message("video_reader.undecodable", last=last))
