"""A pipeline that draws coloured squares, one step at a time when a test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from cogvideo.config import FRAME_COUNTS, PRESETS
from cogvideo.errors import Cancelled
from cogvideo.events import (
    Event,
    Frames,
    FrameUpscaled,
    KeyframeCompleted,
    KeyframePreview,
    Loading,
    Progress,
    RoundCompleted,
    StageName,
    Tokens,
    VideoCompleted,
)
from cogvideo.jobs.service import JobService
from cogvideo.media.images import side_by_side
from cogvideo.media.video import VideoWriter
from cogvideo.request import VideoRequest, tokens_per_stage
from cogvideo.token_frames import TokenFrames
from cogvideo.tokenizers.prompt import CheckedPrompt, TokenizedPrompt, clean_prompt

SIDE = 64
PRESET = replace(PRESETS["mini"], upscale_by_default=True)


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
        self.loaded = self.unloaded = 0
        self.device_type, self.memory = "cpu", "cpu"
        self.fail: Exception | None = None

    @property
    def profile_key(self) -> str:
        return f"{self.device_type}-{self.memory}"

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

    def check_inputs(self, request: VideoRequest) -> CheckedPrompt:
        text, notes = clean_prompt(request.prompt)
        return CheckedPrompt(text, tuple(notes))

    def tokenize_prompt(self, request: VideoRequest) -> TokenizedPrompt:
        """One piece per character; 猹 is unknown; eight pieces are the limit."""
        text, _ = clean_prompt(request.prompt)
        return TokenizedPrompt(tuple((character, character != "猹") for character in text), 8)

    def load(self) -> None:
        self.loaded += 1

    def unload(self) -> None:
        self.unloaded += 1

    def encode(self, picture: Frames) -> TokenFrames:
        """The mean colour of the picture, in as many tokens as a frame has."""
        return TokenFrames.of([[int(picture.mean())] * PRESET.model.tokens_per_frame])

    def decode(self, tokens: TokenFrames) -> Frames:
        grey = np.array([row[0] % 256 for row in tokens.rows()], np.uint8)
        return np.broadcast_to(grey[:, None, None, None], (len(grey), SIDE, SIDE, 3)).copy()

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
        self._done, self._total = 0, sum(plan.values())
        yield Loading("model", 1, 1)
        clips = [moving_square(FRAME_COUNTS[-1], seed) for seed in request.seeds]
        if request.initial_tokens is None:
            yield from self._keyframes(request, clips, stop)
        frames = side_by_side([at_level(clip, request.completed_rounds) for clip in clips])
        yield RoundCompleted(request.completed_rounds, frames, token_clip(request, request.completed_rounds))
        for level in range(request.completed_rounds + 1, request.rounds + 1 if request.num_drafts == 1 else 0):
            self._wait(stop)
            frames = at_level(clips[0], level)
            yield self._progress("interpolate", (FRAME_COUNTS[level] - FRAME_COUNTS[level - 1]))
            yield RoundCompleted(level, frames, token_clip(request, level))
        if plan["superres"]:
            self._wait(stop)
            for index, frame in enumerate(frames):
                self._done += plan["superres"] // len(frames)
                yield Progress("superres", self._done, self._total)
                yield FrameUpscaled(index, len(frames), frame)
        yield VideoCompleted(frames, request.frames_per_second, request.seed)

    def _keyframes(
        self, request: VideoRequest, clips: list[Frames], stop: Callable[[], bool]
    ) -> Generator[Event, None, None]:
        """Half a keyframe at every other step, of all drafts together; a given one takes no step."""
        half = PRESET.model.tokens_per_frame // 2
        stage: StageName = "drafts" if request.num_drafts > 1 else "keyframes"
        for index in range(FRAME_COUNTS[0]):
            pictures = [at_level(clip, 0)[index] for clip in clips]
            if index or request.first_frame is None:
                self._wait(stop)
                yield self._progress(stage, request.num_drafts / 2)
                for draft, picture in enumerate(pictures):
                    yield KeyframePreview(index, half, picture, draft)
                self._wait(stop)
                if self.fail:
                    raise self.fail
                yield self._progress(stage, request.num_drafts / 2)
            for draft, picture in enumerate(pictures):
                yield KeyframeCompleted(index, picture, draft)

    def _progress(self, stage: StageName, frames: float) -> Progress:
        self._done += int(frames * PRESET.model.tokens_per_frame)
        return Progress(stage, self._done, self._total)

    def _wait(self, stop: Callable[[], bool]) -> None:
        """One token: waits for its turn, and asks `stop` as a pipeline does."""
        while not stop():
            if self._free.is_set() or self._steps.acquire(timeout=0.01):
                return
        raise Cancelled


def at_level(clip: Frames, level: int) -> Frames:
    """The frames of the longest clip [33, ...] that a level has."""
    return clip[:: (FRAME_COUNTS[-1] - 1) // (FRAME_COUNTS[level] - 1)]


def token_clip(request: VideoRequest, level: int) -> Tokens:
    """Tokens that say which seed and which moment they are of: [B, F, N]."""
    moments = at_level(np.arange(FRAME_COUNTS[-1]), level)
    seeds = np.array(request.seeds) % 100
    marks = 100 * moments + seeds[:, None]  # [B, F]
    return np.repeat(marks[..., None], PRESET.model.tokens_per_frame, axis=2)


def moving_square(count: int, seed: int) -> Frames:
    """[count, SIDE, SIDE, 3]: a square that moves to the right over a plain ground."""
    colour = np.random.default_rng(seed).integers(0, 200, size=3, dtype=np.uint8)
    frames = np.full((count, SIDE, SIDE, 3), 235, np.uint8)
    for index, frame in enumerate(frames):
        left = round(index * (SIDE - 16) / (count - 1))
        frame[24:40, left : left + 16] = colour
    return frames


class PlainFilm(VideoWriter):
    """Stands for the mp4 where only the file's existence matters."""

    def _encode(self) -> None:
        text = f"{self._count} frames in {self._seconds} s, {self._comment}"
        try:
            self._temporary.write_text(text, "utf-8")
        except OSError as error:
            self._error = error


@contextmanager
def killed(jobs: JobService) -> Iterator[None]:
    """Inside the block `jobs` is as kill -9 leaves it: nothing more is written, and the system has dropped the lock."""
    with jobs._queue.changed:
        jobs._lock_file.close()
        yield
