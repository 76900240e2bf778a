"""Writing of mp4 and gif files from frames uint8 [F, H, W, 3], under a temporary name until they are complete.

`VideoWriter` encodes frames while later ones are being generated; `write_video` writes the same file from all frames.
Videos of all rounds have the same duration: a file has at least 32 steps, so frames of earlier rounds repeat. Settings
are stored as JSON in the file's comment, which `metadata.read_metadata` reads.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import numpy as np

from cogvideo.config import FRAME_COUNTS
from cogvideo.errors import CapacityError
from cogvideo.events import Frames
from cogvideo.media.metadata import Metadata
from cogvideo.messages import message

STEPS: Final = FRAME_COUNTS[-1] - 1
"""Steps from the first to the last frame of a file: 8 frames a second for 4 seconds."""

KEYFRAME_INTERVAL: Final = 8
"""Frames between two I-frames, at most; a short interval makes seeking exact."""

MIN_GIF_STEP: Final = 0.04
"""Shortest duration of a gif's frame in seconds; browsers extend shorter ones to a tenth of a second."""


def write_video(path: Path, frames: Frames, seconds: float, metadata: Metadata | None = None) -> Path:
    """Write an mp4 or gif, by the suffix of `path`. Raises CapacityError.

    `seconds`: time from the first to the last frame. `metadata`: JSON values to store in the file.
    """
    with VideoWriter(path, len(frames), seconds, metadata) as writer:
        writer.add(frames)
        return writer.finish()


class VideoWriter:
    """Encoder of `count` frames in a background thread; see `write_video` for the arguments.

        with VideoWriter(path, 33, 4.0) as writer:
            for frame in frames:
                writer.add(frame[None])
            writer.finish()

    If the block ends before `finish`, `path` is unchanged.
    """

    def __init__(self, path: Path, count: int, seconds: float, metadata: Metadata | None = None) -> None:
        self.path, self._count, self._seconds = path, count, seconds
        self._comment = json.dumps(dict(metadata), ensure_ascii=False, sort_keys=True) if metadata is not None else ""
        self._temporary = path.with_name(f".{secrets.token_hex(8)}.part{path.suffix}")
        self._added = 0
        self._queue: SimpleQueue[Frames | None] = SimpleQueue()  # frames [H, W, 3]; None after the last one
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._encode, name=f"encoder {path.name}", daemon=True)

    def __enter__(self) -> VideoWriter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        self._temporary.unlink(missing_ok=True)

    def add(self, frames: Frames) -> None:
        """Queue the next frames [n, H, W, 3] for encoding. The caller must not modify them afterwards."""
        self._added += len(frames)
        for frame in frames:
            self._queue.put(frame)

    def finish(self) -> Path:
        """Wait until all `count` frames are encoded, and return the file's path. Raises CapacityError, ValueError."""
        if self._added != self._count:
            raise ValueError(f"{self._added} frames were added to a video of {self._count}")
        self._thread.join()
        try:
            if self._error is not None:
                raise self._error
            self._temporary.replace(self.path)
        except OSError as error:
            path, reason = self.path, _reason(error)
            raise CapacityError(*message("video.not_written", path=path, reason=reason)) from error
        return self.path

    def _encode(self) -> None:
        write = _write_gif if self.path.suffix.lower() == ".gif" else _write_mp4
        try:
            write(self._temporary, self._frames(), self._count, self._seconds, self._comment)
        except BaseException as error:  # raised again by `finish`
            self._error = error

    def _frames(self) -> Iterator[Frames]:
        for _ in range(self._count):
            frame = self._queue.get()
            if frame is None:
                raise InterruptedError("the writer was closed before the last frame")
            yield frame


def frame_schedule(count: int, steps: int) -> list[int]:
    """Return the index of the frame, out of `count`, that is nearest in time to each of the steps 0..steps."""
    return [(2 * step * (count - 1) + steps) // (2 * steps) for step in range(steps + 1)]


def _write_mp4(path: Path, frames: Iterator[Frames], count: int, seconds: float, comment: str) -> None:
    """Encode `count` frames [H, W, 3], each as soon as it is available."""
    from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

    steps = max(STEPS, count - 1)
    repeats = Counter(frame_schedule(count, steps))
    first = _even(next(frames))
    height, width = first.shape[:2]
    options = ["-pix_fmt", "yuv420p", "-crf", "16", "-g", str(KEYFRAME_INTERVAL), "-movflags", "+faststart"]
    options += ["-map_metadata", "-1", "-fflags", "+bitexact"]
    if comment:
        options += ["-metadata", f"comment={comment}"]
    # Not "libx264": moviepy would request a pixel format with transparency for it.
    writer = FFMPEG_VideoWriter(str(path), (width, height), steps / seconds, codec="h264", ffmpeg_params=options)
    try:
        for index, frame in enumerate(itertools.chain([first], map(_even, frames))):
            for _ in range(repeats[index]):
                writer.write_frame(frame)
    finally:
        writer.close()
    if not path.is_file() or not path.stat().st_size:
        raise OSError("ffmpeg wrote nothing")


def _even(frame: Frames) -> Frames:
    """Repeat an odd last row or column: yuv420p requires even sides."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _write_gif(path: Path, frames: Iterator[Frames], count: int, seconds: float, comment: str) -> None:
    """Encode a gif. Its palette depends on all `count` frames, so encoding starts after the last one."""
    from PIL import Image

    video = list(frames)
    steps = max(1, min(count - 1, round(seconds / MIN_GIF_STEP)))
    # A gif stores hundredths of a second: times are rounded, not durations, so that the sum is exact.
    times = [round(100 * seconds * step / steps) for step in range(steps + 2)]
    durations = [10 * (after - before) for before, after in itertools.pairwise(times)]
    palette = Image.fromarray(np.concatenate(video[:: max(1, count // 8)])).quantize(256)
    images = [
        Image.fromarray(video[step * (count - 1) // steps]).quantize(palette=palette) for step in range(steps + 1)
    ]
    images[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=0,
        comment=comment.encode() if comment else b"",
    )


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error).strip().splitlines()[-1]
