"""A pipeline that draws coloured squares, one step at a time when a test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cogvideo.config import CLIP_FRAMES, PRESETS, VideoRequest
from cogvideo.errors import Cancelled
from cogvideo.events import (
    Done,
    Event,
    Frames,
    KeyframeDone,
    KeyframePainted,
    LevelDone,
    Loading,
    Progress,
    SuperResolved,
)
from cogvideo.pace import tokens_per_stage
from cogvideo.text import CheckedPrompt, Reading, clean_prompt

SIDE = 64
PRESET = replace(PRESETS["mini"], enlarge=True)


class FakePipeline:
    """Yields a real pipeline's events; every step waits for `step()` unless `open()` was called."""

    def __init__(self, free: bool = False) -> None:
        self._steps = threading.Semaphore(0)
        self._free = threading.Event()
        if free:
            self._free.set()
        self._lock = threading.Lock()
        self._busy = 0
        self.most_busy = 0
        self.started: list[VideoRequest] = []
        self.loaded = 0
        self.fail: Exception | None = None

    def step(self, count: int = 1) -> None:
        self._steps.release(count)

    def open(self) -> None:
        self._free.set()

    def close(self) -> None:
        self._free.clear()

    def reset(self) -> None:
        """Waits for orders again; steps that nobody used are taken back."""
        self._free.clear()
        while self._steps.acquire(blocking=False):
            pass

    def check(self, request: VideoRequest) -> CheckedPrompt:
        text, notes = clean_prompt(request.prompt)
        return CheckedPrompt(text, tuple(notes))

    def read(self, request: VideoRequest) -> Reading:
        """One piece per character; 猹 is unknown; eight pieces are the limit."""
        text, _ = clean_prompt(request.prompt)
        return Reading(tuple((character, character != "猹") for character in text), 8)

    def load(self) -> None:
        self.loaded += 1

    def stream(self, request: VideoRequest, stop: Callable[[], bool] | None = None) -> Generator[Event, None, None]:
        with self._lock:
            self._busy += 1
            self.most_busy = max(self.most_busy, self._busy)
        try:
            self.started.append(request)
            yield from self._draw(request, stop or (lambda: False))
        finally:
            with self._lock:
                self._busy -= 1

    def _draw(self, request: VideoRequest, stop: Callable[[], bool]) -> Generator[Event, None, None]:
        plan = tokens_per_stage(PRESET.model, request)
        total, per_frame, done = sum(plan.values()), PRESET.model.tokens_per_frame, 0
        yield Loading("model", 1, 1)
        clip = moving_square(CLIP_FRAMES[-1], request.seed)
        keyframes = clip[:: CLIP_FRAMES[-1] // 4]
        for index, frame in enumerate(keyframes):
            self._wait(stop)
            yield Progress("keyframes", done + per_frame // 2, total)
            yield KeyframePainted(index, per_frame // 2, frame)
            self._wait(stop)
            if self.fail:
                raise self.fail
            done += per_frame
            yield Progress("keyframes", done, total)
            yield KeyframeDone(index, frame)
        yield LevelDone(0, keyframes)
        frames = keyframes
        for level in range(1, request.rounds + 1):
            self._wait(stop)
            done += (CLIP_FRAMES[level] - CLIP_FRAMES[level - 1]) * per_frame
            frames = clip[:: (CLIP_FRAMES[-1] - 1) // (CLIP_FRAMES[level] - 1)]
            yield Progress("interpolate", done, total)
            yield LevelDone(level, frames)
        if request.superres:
            self._wait(stop)
            for index, frame in enumerate(frames):
                done += plan["superres"] // len(frames)
                yield Progress("superres", done, total)
                yield SuperResolved(index, len(frames), frame)
        yield Done(frames, request.frames_per_second, request.seed)

    def _wait(self, stop: Callable[[], bool]) -> None:
        """One token: waits for its turn, and asks `stop` as a pipeline does."""
        while not stop():
            if self._free.is_set() or self._steps.acquire(timeout=0.01):
                return
        raise Cancelled


def moving_square(count: int, seed: int) -> Frames:
    """[count, SIDE, SIDE, 3]: a square that moves to the right over a plain ground."""
    colour = np.random.default_rng(seed).integers(0, 200, size=3, dtype=np.uint8)
    frames = np.full((count, SIDE, SIDE, 3), 235, np.uint8)
    for index, frame in enumerate(frames):
        left = round(index * (SIDE - 16) / (count - 1))
        frame[24:40, left : left + 16] = colour
    return frames


def write_bytes(path: Path, frames: Frames, seconds: float, comment: Mapping[str, Any] | None) -> None:
    """Stands for the mp4 where only the file's existence matters."""
    path.write_bytes(f"{len(frames)} frames in {seconds} s, {comment}".encode())
