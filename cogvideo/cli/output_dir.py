"""Output folder of a batch, which several processes may fill at the same time.

File names are derived from the request, not from the prompt; `index.tsv` has a line for each video. A process locks a
video before it generates it. The operating system releases the lock when the process ends, even if it was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cogvideo.config import FRAME_COUNTS
from cogvideo.errors import CapacityError, CogVideoError, RequestError
from cogvideo.events import Frames
from cogvideo.files import atomic_write
from cogvideo.media.video import write_video
from cogvideo.messages import message
from cogvideo.request import VideoRequest, request_from_dict, request_to_dict
from cogvideo.token_frames import TokenFrames


class OutputDirectory:
    """Videos of one model in the folder `path`. `keyframes`: save their tokens too. Raises CapacityError."""

    def __init__(self, path: Path, model: str, keyframes: bool = False) -> None:
        self.path, self.model, self._with_keyframes = path, model, keyframes
        self._locks, self._index = path / ".locks", path / "index.tsv"
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK):
                raise PermissionError(f"{path}")
        except OSError as error:
            raise CapacityError(*message("output_dir.folder_not_writable", path=path, error=error)) from error

    def name(self, request: VideoRequest) -> str:
        """Return the video's name: a hash of model and request, and the seed."""
        content = json.dumps([self.model, request_to_dict(request)], ensure_ascii=False, sort_keys=True)
        return f"{hashlib.sha256(content.encode()).hexdigest()[:16]}-{request.seed}"

    def video_path(self, request: VideoRequest) -> Path:
        return self.path / f"{self.name(request)}.mp4"

    def keyframes(self, request: VideoRequest) -> Path:
        """Return the path of the keyframes of `request`."""
        return self.path / f"{self.name(request)}.safetensors"

    def lock(
        self, locks: ExitStack, requests: Sequence[VideoRequest], limit: int, wait: bool = False
    ) -> tuple[list[VideoRequest], list[VideoRequest], list[VideoRequest]]:
        """Lock videos that do not exist yet, at most `limit`, until `locks` closes.

        Returns (locked here, locked by other processes, not tried). `wait`: wait for the other processes' locks.
        """
        from filelock import FileLock, Timeout

        ours: list[VideoRequest] = []
        busy: list[VideoRequest] = []
        for number, request in enumerate(requests):
            if len(ours) == limit:
                return ours, busy, list(requests[number:])
            lock = FileLock(self._locks / self.name(request))
            try:
                lock.acquire(timeout=-1 if wait else 0)
            except Timeout:
                busy.append(request)
                continue
            if self._has(request):
                self._add_to_index(request)
                lock.release()
            else:
                ours.append(request)
                locks.callback(lock.release)
        return ours, busy, []

    def put(self, request: VideoRequest, frames: Frames, keyframes: Tensor, metadata: dict[str, Any]) -> Path:
        """Write the files of a locked video, the video last, and its line of the index. Raises CapacityError."""
        path = self.video_path(request)
        if self._with_keyframes:
            try:
                write_keyframes(self.keyframes(request), keyframes, self.model, request)
            except OSError as error:
                raise CapacityError(
                    *message(
                        "output_dir.keyframes_not_written", keyframes=self.keyframes(request), strerror=error.strerror
                    )
                ) from error
        write_video(path, frames, request.duration, metadata)
        self._add_to_index(request)
        return path

    def _has(self, request: VideoRequest) -> bool:
        has_keyframes = not self._with_keyframes or self.keyframes(request).is_file()
        return has_keyframes and self.video_path(request).is_file()

    def _add_to_index(self, request: VideoRequest) -> None:
        """Add the video to the index unless it is there. A process may have ended between the video and its line."""
        from filelock import FileLock

        name = self.video_path(request).name
        if name in self._indexed:
            return
        with FileLock(self._locks / "index"):
            if name not in self._read_index():
                with self._index.open("a", encoding="utf-8") as index:
                    index.write(f"{name}\t{request.seed}\t{' '.join(request.prompt.split())}\n")
        self._indexed.add(name)

    @cached_property
    def _indexed(self) -> set[str]:
        return self._read_index()

    def _read_index(self) -> set[str]:
        if not self._index.is_file():
            return set()
        return {line.split("\t")[0] for line in self._index.read_text(encoding="utf-8").splitlines()}


MAX_TOKEN: Final = 2**16 - 1
"""The largest token that `TokenFrames` can store. The check of the request compares tokens with the model."""
MAX_BYTES: Final = 2**20
"""Bytes of a keyframe file; those of the published model have 8 kB."""


def write_keyframes(path: Path, keyframes: Tensor, model: str, request: VideoRequest) -> None:
    """Write `keyframes` [5, N] that `model` generated for `request`. Raises OSError."""
    metadata = {"model": model, "request": json.dumps(request_to_dict(request), ensure_ascii=False)}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save({"keyframes": keyframes.to(torch.int32).contiguous()}, metadata))


def read_keyframes(path: Path) -> tuple[str, VideoRequest]:
    """Return the model's name, and the request with its keyframes as `initial_tokens`. Raises RequestError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        with safe_open(path, framework="pt") as opened:
            metadata, keyframes = opened.metadata() or {}, opened.get_tensor("keyframes")
        if keyframes.dtype != torch.int32 or keyframes.ndim != 2 or len(keyframes) != FRAME_COUNTS[0]:
            raise ValueError(f"{keyframes.dtype} {list(keyframes.shape)}")
        if int(keyframes.min()) < 0 or int(keyframes.max()) > MAX_TOKEN:
            raise ValueError("tokens out of range")
        request = request_from_dict(json.loads(metadata["request"]))
        if not isinstance(request.prompt, str):
            raise ValueError(f"the prompt {request.prompt!r}")
        tokens = TokenFrames.of(keyframes.tolist())
        return metadata["model"], replace(request, num_frames=FRAME_COUNTS[0], initial_tokens=tokens, superres=False)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, CogVideoError) as error:
        raise RequestError(*message("output_dir.invalid_keyframe_file", path=path, error=error)) from error
