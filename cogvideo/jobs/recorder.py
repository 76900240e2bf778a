"""One run of the pipeline: its events become files, log entries and what people see. No torch."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from cogvideo.events import (
    Event,
    Frames,
    FrameUpscaled,
    KeyframeCompleted,
    KeyframePreview,
    Loading,
    Progress,
    RoundCompleted,
    VideoCompleted,
)
from cogvideo.jobs.artifacts import JobArtifacts
from cogvideo.jobs.eta import ThroughputEstimator
from cogvideo.jobs.state import JobState
from cogvideo.media.images import side_by_side, thumbnail
from cogvideo.media.video import VideoWriter
from cogvideo.request import VideoRequest

Clip = dict[str, Any]
"""A clip's files and number of frames, as the log keeps them (`Folder.clip`)."""


class EventRecorder:
    """What one run has made so far, and the files that show it.

    The clip of a level is encoded while the next level is drawn, that of enlarged frames while others are enlarged.
    `tell` gets kind and data of each entry of the log, once its files are there: of levels from a thread of its own,
    which ends with the block. `comment`: the settings for the clip that the run leaves behind, None for none.
    """

    def __init__(
        self,
        folder: JobArtifacts,
        request: VideoRequest,
        comment: dict[str, Any] | None,
        tell: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._folder, self._request, self._comment, self._tell = folder, request, comment, tell
        self._keyframes: list[Frames] = []  # of drafts: the first of each, then the second of each
        self._level: Frames | None = None
        self._finished: Frames | None = None
        self._clip: Future[Clip] | None = None  # of the last level
        self._film: VideoWriter | None = None  # of enlarged frames
        self._open = ExitStack()
        self._encoder = self._open.enter_context(ThreadPoolExecutor(1, "cogvideo-clips"))

    def __enter__(self) -> EventRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def keep(self, event: Event) -> None:
        """Writes what the event brought, and tells of it. Raises what the clip of a level met, too."""
        if self._clip and self._clip.done():
            self._clip.result()
        if isinstance(event, KeyframeCompleted):
            self._keyframes.append(event.frame)
            file = self._folder.keyframe(event.index, event.frame, event.draft)
            self._tell("keyframe", {"index": event.index, "file": file})
        elif isinstance(event, RoundCompleted):
            if self._clip:
                self._clip.result()  # one at a time, and none whose error nobody hears
            self._level = event.frames
            if event.tokens is not None:
                self._folder.keep_tokens(event.tokens)
            self._clip = self._encoder.submit(self._write_level, event.round, event.frames)
        elif isinstance(event, FrameUpscaled):
            self._film = self._film or self._open.enter_context(
                self._folder.film("final.mp4", event.total, *self._about)
            )
            self._film.add(event.frame[None])
        elif isinstance(event, VideoCompleted):
            self._finished = event.frames

    def final(self) -> Clip:
        """The finished clip."""
        if self._finished is None or self._clip is None:
            raise RuntimeError("The pipeline ended without its last event")
        self._folder.keep(self._finished)
        clip = self._clip.result()
        if self._film is None:  # nothing was enlarged: the last level is the clip
            return clip
        self._folder.finish(self._film)
        return self._folder.pictures("final", self._finished)

    def kept(self) -> Clip:
        """The clip of a run that ended early: its last level, or the keyframes so far, or nothing."""
        if self._clip:
            wait([self._clip])  # the log has it first
        drafts = self._request.num_drafts
        whole = self._keyframes[: len(self._keyframes) // drafts * drafts]
        frames = self._level
        if frames is None and whole:
            frames = side_by_side([np.stack(whole[draft::drafts]) for draft in range(drafts)])
        if frames is None:
            return {}
        self._folder.keep(frames)
        return self._folder.clip("kept", frames, *self._about)

    @property
    def _about(self) -> tuple[VideoRequest, dict[str, Any] | None]:
        return self._request, self._comment

    def _write_level(self, level: int, frames: Frames) -> Clip:
        request = self._request
        if request.num_drafts > 1 or (level == request.rounds and not request.superres):  # nothing comes after it
            clip = self._folder.clip("final", frames, *self._about)
        else:
            clip = self._folder.clip(f"level-{level}", frames, request, None)
        self._tell("level", {"level": level, **clip})
        return clip


class ProgressTracker:
    """What people see of a run and nobody keeps: how far it is, how long it takes, the keyframe that is being painted.

    `plan`: tokens per stage. `preview_seconds`: least time between two pictures of one keyframe.
    """

    def __init__(self, plan: dict[str, int], pace: ThroughputEstimator, drafts: int, preview_seconds: float) -> None:
        self._plan, self._pace, self._drafts = plan, pace, drafts
        self._painted: list[str] = []
        self._preview_seconds = preview_seconds
        self._last_preview = -preview_seconds

    def show(self, view: JobState, event: Event) -> JobState:
        """The view after an event."""
        if isinstance(event, Loading):
            return replace(view, stage="load", parts=(event.done, event.total))
        if isinstance(event, Progress):
            self._pace.advance(event.stage, event.done, time.monotonic())
            left = self._pace.seconds_left(self._plan, event.done)
            return replace(view, stage=event.stage, done=event.done, total=event.total, seconds_left=left)
        if isinstance(event, KeyframePreview):
            return self._paint(view, event)
        if isinstance(event, FrameUpscaled):
            return replace(view, stage="superres")
        return view

    def _paint(self, view: JobState, event: KeyframePreview) -> JobState:
        """The keyframe as far as it is painted, once it came for all drafts and the last picture is old enough."""
        if event.draft == 0:
            self._painted = []
            if not self._preview_due():
                return view
        elif len(self._painted) != event.draft:
            return view
        picture = base64.b64encode(thumbnail(event.frame)).decode()
        self._painted.append(f"data:image/webp;base64,{picture}")
        complete = len(self._painted) == self._drafts
        return replace(view, painting=(event.index, *self._painted)) if complete else view

    def _preview_due(self) -> bool:
        now = time.monotonic()
        if now - self._last_preview < self._preview_seconds:
            return False
        self._last_preview = now
        return True
