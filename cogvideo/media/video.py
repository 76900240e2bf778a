"""Frames uint8 [F, H, W, 3] -> an mp4 or gif file, written whole under a temporary name and then renamed; no shell.

A `Film` is encoded while its later frames are still being made; `write_video` has them all and gives the same file.
Every level of a clip plays for the same time: a file has at least 32 steps, so frames of the lower levels repeat.
Settings travel inside the file as JSON in its comment, Chinese included; `read_metadata` gets them back.
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

STEPS: Final = FRAME_COUNTS[-1] - 1
"""Steps from the first to the last picture of a file: at 4 seconds this makes 8 pictures a second."""

KEY_EVERY: Final = 8
"""A key picture at least this often, so that scrubbing finds every place."""

GIF_STEP: Final = 0.04
"""Shortest time of a gif's picture in seconds; browsers slow shorter ones down to a tenth of a second."""


def write_video(path: Path, frames: Frames, seconds: float, metadata: Metadata | None = None) -> Path:
    """Write `frames`, which span `seconds` from first to last, as the suffix of `path` says. Raises CapacityError.

    `metadata`: JSON values to keep in the file, or None for none.
    """
    with VideoWriter(path, len(frames), seconds, metadata) as film:
        film.add(frames)
        return film.finish()


class VideoWriter:
    """A file of `count` frames that is written by a thread of its own, from the first frame on; see `write_video`.

        with Film(path, 33, 4.0) as film:
            for frame in frames:  # as they are made
                film.add(frame[None])
            film.finish()

    Who leaves the block before `finish` gives the film up: then nothing has changed at `path`.
    """

    def __init__(self, path: Path, count: int, seconds: float, metadata: Metadata | None = None) -> None:
        self.path, self._count, self._seconds = path, count, seconds
        self._comment = json.dumps(dict(metadata), ensure_ascii=False, sort_keys=True) if metadata is not None else ""
        self._draft = path.with_name(f".{secrets.token_hex(8)}.part{path.suffix}")
        self._added = 0
        self._waiting: SimpleQueue[Frames | None] = SimpleQueue()  # frames [H, W, 3]; None: there will be no more
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._encode, name=f"film {path.name}", daemon=True)

    def __enter__(self) -> VideoWriter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()
        self._draft.unlink(missing_ok=True)

    def add(self, frames: Frames) -> None:
        """The next frames, [n, H, W, 3]; they must not be changed afterwards. Does not wait for them to be encoded."""
        self._added += len(frames)
        for frame in frames:
            self._waiting.put(frame)

    def finish(self) -> Path:
        """Waits until all `count` frames are encoded; the file's path. Raises CapacityError."""
        if self._added != self._count:
            raise ValueError(f"{self._added} frames were added to a film of {self._count}")
        self._thread.join()
        try:
            if self._error is not None:
                raise self._error
            self._draft.replace(self.path)
        except OSError as error:
            path, reason = self.path, _reason(error)
            raise CapacityError(
                f"无法写入视频文件 {path}（{reason}）：请检查磁盘空间和文件夹权限。",
                f"The video file {path} could not be written ({reason}): check disk space and the folder's rights.",
            ) from error
        return self.path

    def _encode(self) -> None:
        write = _write_gif if self.path.suffix.lower() == ".gif" else _write_mp4
        try:
            write(self._draft, self._frames(), self._count, self._seconds, self._comment)
        except BaseException as error:  # raised again where the film is finished
            self._error = error

    def _frames(self) -> Iterator[Frames]:
        for _ in range(self._count):
            frame = self._waiting.get()
            if frame is None:
                raise InterruptedError("the film was given up")
            yield frame


def frame_schedule(count: int, steps: int) -> list[int]:
    """Which of `count` frames shows at each of the steps 0..steps: the one that is nearest in time."""
    return [(2 * step * (count - 1) + steps) // (2 * steps) for step in range(steps + 1)]


def _write_mp4(path: Path, frames: Iterator[Frames], count: int, seconds: float, comment: str) -> None:
    """`count` frames [H, W, 3], each encoded as it comes."""
    from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

    steps = max(STEPS, count - 1)
    shown = Counter(frame_schedule(count, steps))
    first = _even(next(frames))
    height, width = first.shape[:2]
    options = ["-pix_fmt", "yuv420p", "-crf", "16", "-g", str(KEY_EVERY), "-movflags", "+faststart"]
    options += ["-map_metadata", "-1", "-fflags", "+bitexact"]
    if comment:
        options += ["-metadata", f"comment={comment}"]
    # "h264" rather than "libx264": for the latter moviepy asks for a pixel format with transparency.
    writer = FFMPEG_VideoWriter(str(path), (width, height), steps / seconds, codec="h264", ffmpeg_params=options)
    try:
        for index, frame in enumerate(itertools.chain([first], map(_even, frames))):
            for _ in range(shown[index]):
                writer.write_frame(frame)
    finally:
        writer.close()
    if not path.is_file() or not path.stat().st_size:
        raise OSError("ffmpeg wrote nothing")


def _even(frame: Frames) -> Frames:
    """yuv420p halves both sides; an odd last row or column is repeated."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _write_gif(path: Path, every: Iterator[Frames], count: int, seconds: float, comment: str) -> None:
    """Its colours are chosen from the whole clip, so it begins when all `count` frames are there."""
    from PIL import Image

    frames = list(every)
    steps = max(1, min(count - 1, round(seconds / GIF_STEP)))
    # Hundredths of a second are all a gif can say: round the moments, not the durations, so that the sum is right.
    moments = [round(100 * seconds * step / steps) for step in range(steps + 2)]
    durations = [10 * (after - before) for before, after in itertools.pairwise(moments)]
    palette = Image.fromarray(np.concatenate(frames[:: max(1, count // 8)])).quantize(256)
    pictures = [
        Image.fromarray(frames[step * (count - 1) // steps]).quantize(palette=palette) for step in range(steps + 1)
    ]
    pictures[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        comment=comment.encode() if comment else b"",
    )


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error).strip().splitlines()[-1]
