"""The files of one job: uint8 frames [F, H, W, 3] become thumbnails, strips and videos in the job's folder. No torch.

Every file appears whole (written under another name, then renamed), is never changed afterwards and has a name that
says what it is, so that a browser may keep it for ever.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cogvideo.config import FRAME_COUNTS
from cogvideo.errors import CapacityError
from cogvideo.events import Frames, Tokens
from cogvideo.media.images import filmstrip, thumbnail
from cogvideo.media.metadata import Metadata, read_metadata
from cogvideo.media.video import VideoWriter
from cogvideo.request import REQUEST_NAMES, VideoRequest, request_from_dict
from cogvideo.token_frames import TokenFrames

OpenVideo = Callable[[Path, int, float, Metadata | None], VideoWriter]
"""(path, number of frames, seconds from first to last, metadata) -> a video on its way
(`cogvideo.media.video.VideoWriter`)."""

EXPORTS = ("clip.gif", "frames.zip")
"""Files made of a finished clip when somebody first asks for them."""
FRAMES = "frames.npz"
"""The clip's frames as they were drawn, for the exports."""
TOKENS = "tokens.npz"
"""What was drawn before super-resolution, so that a finished job can go on."""


@dataclass(frozen=True)
class JobArtifacts:
    """The folder of one job. File names are made here alone; no name holds anything a user typed.

    Whatever writes raises CapacityError where the disk does not take it.
    """

    path: Path
    open_film: OpenVideo

    def keyframe(self, index: int, frame: Frames, draft: int = 0) -> str:
        """Writes keyframe `index` and returns the file's name."""
        return self._write(f"key-{index}-{draft}.webp" if draft else f"key-{index}.webp", thumbnail(frame))

    def clip(self, name: str, frames: Frames, request: VideoRequest, comment: dict[str, Any] | None) -> dict[str, Any]:
        """Writes a clip and its pictures; returns as `pictures` does."""
        self._encode(f"{name}.mp4", frames, request, comment)
        return self.pictures(name, frames)

    def film(self, name: str, count: int, request: VideoRequest, comment: dict[str, Any] | None) -> VideoWriter:
        """A video file alone, for `count` frames that may come one by one."""
        self._make()
        # Fewer frames than keyframes are the beginning of a clip that was stopped: it is as much shorter.
        part = max(1, min(count, FRAME_COUNTS[0]) - 1) / (FRAME_COUNTS[0] - 1)
        return self.open_film(self.path / name, count, request.duration * part, comment)

    def finish(self, film: VideoWriter) -> None:
        """Waits until it is encoded. People are not told where on the server it lies."""
        try:
            film.finish()
        except CapacityError as error:
            if isinstance(error.__cause__, OSError):
                raise _full(error.__cause__) from error
            raise

    def pictures(self, name: str, frames: Frames) -> dict[str, Any]:
        """Writes strip and poster of a clip; returns its files and the number of frames, as the log keeps them."""
        return {
            "video": f"{name}.mp4",
            "strip": self._write(f"{name}-strip.webp", filmstrip(frames)),
            "poster": self._write(f"{name}-poster.webp", thumbnail(frames[len(frames) // 2])),
            "frames": len(frames),
        }

    def keep(self, frames: Frames) -> None:
        """Keeps the frames of a clip that will not change any more."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, frames=frames)
        self._write(FRAMES, buffer.getvalue())

    def keep_tokens(self, tokens: Tokens) -> None:
        """Keeps the tokens [B, F, N] drawn so far; those kept before are among them."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, tokens=tokens.astype(np.uint16))
        self._write(TOKENS, buffer.getvalue())

    def tokens(self, draft: int = 0) -> TokenFrames | None:
        """The tokens [F, N] of one video; None where there are none."""
        path = self.path / TOKENS
        if not path.is_file():
            return None
        with np.load(path) as kept:
            clips = kept["tokens"]  # [B, F, N]
        return TokenFrames.of(clips[draft].tolist()) if 0 <= draft < len(clips) else None

    def export(self, name: str, request: VideoRequest, comment: dict[str, Any] | None) -> Path | None:
        """The path of one of EXPORTS, made now where it is missing; None where no frames were kept."""
        path = self.path / name
        if path.is_file():
            return path
        if name not in EXPORTS or not (self.path / FRAMES).is_file():
            return None
        with np.load(self.path / FRAMES) as kept:
            frames = kept["frames"]  # [F, H, W, 3]
        if name == "clip.gif":
            self._encode(name, frames, request, comment)
        else:
            self._write(name, _zipped(frames))
        return path

    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.path.iterdir()) if self.path.is_dir() else 0

    def clear(self) -> None:
        """Removes what a killed process left half-written."""
        for path in self.path.glob(".*"):
            path.unlink(missing_ok=True)

    def _encode(self, name: str, frames: Frames, request: VideoRequest, comment: dict[str, Any] | None) -> None:
        with self.film(name, len(frames), request, comment) as film:
            film.add(frames)
            self.finish(film)

    def _write(self, name: str, data: bytes) -> str:
        self._make()
        unfinished = self.path / f".{name}"
        try:
            unfinished.write_bytes(data)
            os.replace(unfinished, self.path / name)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise _full(error) from error
        return name

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _full(error) from error


def read_settings(path: Path) -> tuple[VideoRequest, str] | None:
    """Request and model in an mp4 or gif of ours, None where there are none. Raises RequestError for nonsense."""
    settings = read_metadata(path)
    if not settings or not isinstance(settings.get("prompt"), str):
        return None
    try:
        request = request_from_dict({name: value for name, value in settings.items() if name in REQUEST_NAMES})
        return request, str(settings.get("model", ""))
    except (TypeError, ValueError, AttributeError):  # JSON of somebody else's making
        return None


def _full(error: OSError) -> CapacityError:
    reason = error.strerror or "ffmpeg"
    return CapacityError(
        f"无法在数据文件夹中保存结果（{reason}）：请检查服务器的磁盘空间和文件夹权限。",
        f"The results cannot be written to the data folder ({reason}): check the server's disk space and the "
        "folder's rights.",
    )


def _zipped(frames: Frames) -> bytes:
    """All frames as PNG files in one zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for index, frame in enumerate(frames):
            picture = io.BytesIO()
            Image.fromarray(frame).save(picture, "PNG")
            archive.writestr(f"frame-{index + 1:02}.png", picture.getvalue())
    return buffer.getvalue()
