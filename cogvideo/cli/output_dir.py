"""A folder of films that several processes fill at the same time: who draws what, what is there, and which is which.

Files are named after what they were drawn from and never by a sentence; `index.tsv` has a line for each. A film is
drawn by the process that holds its lock, which the system takes back when a process ends, however it ends.
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
from cogvideo.request import VideoRequest, request_from_dict, request_to_dict
from cogvideo.token_frames import TokenFrames


class OutputDirectory:
    """The films of one model in `path`; with `keyframes` their tokens are kept beside them. Raises CapacityError."""

    def __init__(self, path: Path, model: str, keyframes: bool = False) -> None:
        self.path, self.model, self._with_keyframes = path, model, keyframes
        self._locks, self._index = path / ".locks", path / "index.tsv"
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK):
                raise PermissionError(f"{path}")
        except OSError as error:
            raise CapacityError(
                f"无法写入文件夹 {path}（{error}）：请换一个 --output-path。",
                f"The folder {path} cannot be written ({error}): choose another --output-path.",
            ) from error

    def name(self, request: VideoRequest) -> str:
        """The same for the same film, and made of digits and letters alone."""
        what = json.dumps([self.model, request_to_dict(request)], ensure_ascii=False, sort_keys=True)
        return f"{hashlib.sha256(what.encode()).hexdigest()[:16]}-{request.seed}"

    def video_path(self, request: VideoRequest) -> Path:
        return self.path / f"{self.name(request)}.mp4"

    def keyframes(self, request: VideoRequest) -> Path:
        """Where the keyframes are kept that were drawn for `request`."""
        return self.path / f"{self.name(request)}.safetensors"

    def lock(
        self, held: ExitStack, requests: Sequence[VideoRequest], most: int, wait: bool = False
    ) -> tuple[list[VideoRequest], list[VideoRequest], list[VideoRequest]]:
        """(at most `most` films, ours to draw until `held` closes; those that others draw; those not looked at).

        `wait`: until the others are done with theirs.
        """
        from filelock import FileLock, Timeout

        ours: list[VideoRequest] = []
        busy: list[VideoRequest] = []
        for number, request in enumerate(requests):
            if len(ours) == most:
                return ours, busy, list(requests[number:])
            lock = FileLock(self._locks / self.name(request))
            try:
                lock.acquire(timeout=-1 if wait else 0)
            except Timeout:
                busy.append(request)
                continue
            if self._has(request):
                self._note(request)
                lock.release()
            else:
                ours.append(request)
                held.callback(lock.release)
        return ours, busy, []

    def put(self, request: VideoRequest, frames: Frames, keyframes: Tensor, metadata: dict[str, Any]) -> Path:
        """A film that was claimed is finished: its files, the film last, and its line. Raises CapacityError."""
        path = self.video_path(request)
        if self._with_keyframes:
            try:
                write_keyframes(self.keyframes(request), keyframes, self.model, request)
            except OSError as error:
                raise CapacityError(
                    f"无法写入 {self.keyframes(request)}（{error.strerror}）：请检查磁盘空间。",
                    f"{self.keyframes(request)} cannot be written ({error.strerror}): check the disk's space.",
                ) from error
        write_video(path, frames, request.duration, metadata)
        self._note(request)
        return path

    def _has(self, request: VideoRequest) -> bool:
        kept = not self._with_keyframes or self.keyframes(request).is_file()
        return kept and self.video_path(request).is_file()

    def _note(self, request: VideoRequest) -> None:
        """The film's line in the index, once: also where its process ended between the film and the line."""
        from filelock import FileLock

        name = self.video_path(request).name
        if name in self._noted:
            return
        with FileLock(self._locks / "index"):
            if name not in self._read_index():
                with self._index.open("a", encoding="utf-8") as index:
                    index.write(f"{name}\t{request.seed}\t{' '.join(request.prompt.split())}\n")
        self._noted.add(name)

    @cached_property
    def _noted(self) -> set[str]:
        return self._read_index()

    def _read_index(self) -> set[str]:
        if not self._index.is_file():
            return set()
        return {line.split("\t")[0] for line in self._index.read_text(encoding="utf-8").splitlines()}


MOST: Final = 2**16 - 1
"""The largest token that `TokenFrames` can hold; whether a model has it is seen when the request is checked."""
LARGEST: Final = 2**20
"""Bytes. Keyframes of the published model take 8 kB; a file of weights is no file of keyframes."""


def write_keyframes(path: Path, keyframes: Tensor, model: str, request: VideoRequest) -> None:
    """`keyframes` [5, N], which `model` drew for `request`, as the file `path`, whole or not at all. Raises OSError."""
    about = {"model": model, "request": json.dumps(request_to_dict(request), ensure_ascii=False)}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save({"keyframes": keyframes.to(torch.int32).contiguous()}, about))


def read_keyframes(path: Path) -> tuple[str, VideoRequest]:
    """The model's name, and the request with the keyframes as its `clip`. Raises RequestError naming the file."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"larger than {LARGEST} bytes")
        with safe_open(path, framework="pt") as opened:
            about, keyframes = opened.metadata() or {}, opened.get_tensor("keyframes")
        if keyframes.dtype != torch.int32 or keyframes.ndim != 2 or len(keyframes) != FRAME_COUNTS[0]:
            raise ValueError(f"{keyframes.dtype} {list(keyframes.shape)}")
        if int(keyframes.min()) < 0 or int(keyframes.max()) > MOST:
            raise ValueError("tokens out of range")
        request = request_from_dict(json.loads(about["request"]))
        if not isinstance(request.prompt, str):
            raise ValueError(f"the prompt {request.prompt!r}")
        clip = TokenFrames.of(keyframes.tolist())
        return about["model"], replace(request, num_frames=FRAME_COUNTS[0], initial_tokens=clip, superres=False)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, CogVideoError) as error:
        raise RequestError(
            f"{path} 不是可用的关键帧文件（{error}）：请用 --stage-1 重新生成。",
            f"{path} is no usable file of keyframes ({error}): make it again with --stage-1.",
        ) from error
