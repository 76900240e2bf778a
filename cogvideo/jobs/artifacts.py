"""The files of one job: thumbnails, filmstrips and videos, written from uint8 frames [F, H, W, 3].

Files are written under a temporary name, then renamed, and never change afterwards, so browsers may cache them without
limit.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cogvideo.config import FRAME_COUNTS
from cogvideo.errors import CapacityError
from cogvideo.events import Frames, Tokens
from cogvideo.jobs.log_entries import VideoFiles
from cogvideo.media.images import filmstrip, thumbnail
from cogvideo.media.metadata import Metadata, read_metadata
from cogvideo.media.video import VideoWriter
from cogvideo.messages import message
from cogvideo.request import REQUEST_NAMES, VideoRequest, request_from_dict
from cogvideo.token_frames import TokenFrames

OpenVideo = Callable[[Path, int, float, Metadata | None], VideoWriter]
"""(path, number of frames, seconds from first to last frame, metadata) -> an open video file, as
`cogvideo.media.video.VideoWriter`."""

EXPORTS = ("clip.gif", "frames.zip")
"""Files generated from a finished video on first request."""
FRAMES = "frames.npz"
"""The final frames, uncompressed by a video codec, for the exports."""
TOKENS = "tokens.npz"
"""Tokens before super-resolution, so that a finished job can be continued."""


@dataclass(frozen=True)
class JobArtifacts:
    """The folder of one job. File names are fixed; none contains user input.

    All methods that write raise CapacityError if the disk is full or not writable.
    """

    path: Path
    open_writer: OpenVideo

    def write_keyframe(self, index: int, frame: Frames, draft: int = 0) -> str:
        """Write keyframe `index` [H, W, 3] and return the file's name."""
        return self._write(f"key-{index}-{draft}.webp" if draft else f"key-{index}.webp", thumbnail(frame))

    def write_video(
        self, name: str, frames: Frames, request: VideoRequest, metadata: Metadata | None = None
    ) -> VideoFiles:
        """Write a video and its preview images. Returns the file names."""
        self._encode(f"{name}.mp4", frames, request, metadata)
        return self.write_previews(name, frames)

    def open_video(self, name: str, count: int, request: VideoRequest, metadata: Metadata | None) -> VideoWriter:
        """Open a video file without preview images. Its `count` frames can be added one by one."""
        self._make()
        # Fewer frames than keyframes are the beginning of a video that was stopped: it is shorter in proportion.
        part = max(1, min(count, FRAME_COUNTS[0]) - 1) / (FRAME_COUNTS[0] - 1)
        return self.open_writer(self.path / name, count, request.duration * part, metadata)

    def finish_video(self, video: VideoWriter) -> None:
        """Wait until the video is encoded. The errors raised do not contain server paths."""
        try:
            video.finish()
        except CapacityError as error:
            if isinstance(error.__cause__, OSError):
                raise _disk_error(error.__cause__) from error
            raise

    def write_previews(self, name: str, frames: Frames) -> VideoFiles:
        """Write filmstrip and poster of the video `name`. Returns the names of all three files."""
        return VideoFiles(
            video=f"{name}.mp4",
            strip=self._write(f"{name}-strip.webp", filmstrip(frames)),
            poster=self._write(f"{name}-poster.webp", thumbnail(frames[len(frames) // 2])),
            frames=len(frames),
        )

    def write_frames(self, frames: Frames) -> None:
        """Write the final frames, from which `export` generates files."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, frames=frames)
        self._write(FRAMES, buffer.getvalue())

    def write_tokens(self, tokens: Tokens) -> None:
        """Write the tokens [B, F, N] generated so far, in place of those written before."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, tokens=tokens.astype(np.uint16))
        self._write(TOKENS, buffer.getvalue())

    def read_tokens(self, draft: int = 0) -> TokenFrames | None:
        """Return the tokens [F, N] of one draft. Returns None if there are none."""
        path = self.path / TOKENS
        if not path.is_file():
            return None
        with np.load(path) as archive:
            tokens = archive["tokens"]  # [B, F, N]
        return TokenFrames.of(tokens[draft].tolist()) if 0 <= draft < len(tokens) else None

    def export(self, name: str, request: VideoRequest, metadata: Metadata | None) -> Path | None:
        """Return the path of one of EXPORTS, generated if missing. Returns None if there are no final frames."""
        path = self.path / name
        if path.is_file():
            return path
        if name not in EXPORTS or not (self.path / FRAMES).is_file():
            return None
        with np.load(self.path / FRAMES) as archive:
            frames = archive["frames"]  # [F, H, W, 3]
        if name == "clip.gif":
            self._encode(name, frames, request, metadata)
        else:
            self._write(name, _zipped(frames))
        return path

    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(file.stat().st_size for file in self.path.iterdir()) if self.path.is_dir() else 0

    def remove_partial_files(self) -> None:
        """Remove incomplete files of a killed process."""
        for path in self.path.glob(".*"):
            path.unlink(missing_ok=True)

    def _encode(self, name: str, frames: Frames, request: VideoRequest, metadata: Metadata | None) -> None:
        with self.open_video(name, len(frames), request, metadata) as video:
            video.add(frames)
            self.finish_video(video)

    def _write(self, name: str, data: bytes) -> str:
        self._make()
        unfinished = self.path / f".{name}"
        try:
            unfinished.write_bytes(data)
            os.replace(unfinished, self.path / name)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise _disk_error(error) from error
        return name

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _disk_error(error) from error


def read_settings(path: Path) -> tuple[VideoRequest, str] | None:
    """Read request and model from the metadata of a generated mp4 or gif. Returns None if it contains none.

    Raises RequestError if the stored request is invalid.
    """
    settings = read_metadata(path)
    if not settings or not isinstance(settings.get("prompt"), str):
        return None
    try:
        request = request_from_dict({name: value for name, value in settings.items() if name in REQUEST_NAMES})
        return request, str(settings.get("model", ""))
    except (TypeError, ValueError, AttributeError):  # metadata of another program
        return None


def _disk_error(error: OSError) -> CapacityError:
    reason = error.strerror or "ffmpeg"
    return CapacityError(*message("artifacts.results_not_written", reason=reason))


def _zipped(frames: Frames) -> bytes:
    """Return a zip file with one PNG per frame."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for index, frame in enumerate(frames):
            image = io.BytesIO()
            Image.fromarray(frame).save(image, "PNG")
            archive.writestr(f"frame-{index + 1:02}.png", image.getvalue())
    return buffer.getvalue()
