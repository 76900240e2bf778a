"""One run of the pipeline: its events become files, log entries and what people see. No torch."""

from __future__ import annotations

import base64
import time
from dataclasses import replace
from typing import Any

import numpy as np

from cogvideo.config import VideoRequest
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
from cogvideo.pace import Pace
from cogvideo.results import Folder, thumbnail
from cogvideo.view import View


class Take:
    """What one run has made so far, and the files that show it."""

    def __init__(
        self, folder: Folder, request: VideoRequest, plan: dict[str, int], pace: Pace, preview_seconds: float
    ) -> None:
        self.folder, self.request, self.plan, self.pace = folder, request, plan, pace
        self.finished: Frames | None = None
        self._keyframes: list[Frames] = []
        self._level: Frames | None = None
        self._preview_seconds = preview_seconds
        self._last_preview = -preview_seconds

    def keep(self, event: Event) -> tuple[str, dict[str, Any]] | None:
        """Writes what the event brought; returns kind and data of its log entry, None for passing events."""
        if isinstance(event, KeyframeDone):
            self._keyframes.append(event.frame)
            return "keyframe", {"index": event.index, "file": self.folder.keyframe(event.index, event.frame)}
        if isinstance(event, LevelDone):
            self._level = event.frames
            return "level", {"level": event.level, **self.clip(f"level-{event.level}", event.frames, None)}
        if isinstance(event, Done):
            self.finished = event.frames
        return None

    def show(self, view: View, event: Event) -> View:
        """The view after a passing event."""
        if isinstance(event, Loading):
            return replace(view, stage="load")
        if isinstance(event, Progress):
            now = time.monotonic()
            self.pace.advance(event.stage, event.done, now)
            left = self.pace.seconds_left(self.plan, event.done)
            return replace(view, stage=event.stage, done=event.done, total=event.total, seconds_left=left)
        if isinstance(event, KeyframePainted) and self._preview_due():
            picture = base64.b64encode(thumbnail(event.frame)).decode()
            return replace(view, painting=(event.index, f"data:image/webp;base64,{picture}"))
        if isinstance(event, SuperResolved):
            return replace(view, stage="superres")
        return view

    def clip(self, name: str, frames: Frames, comment: dict[str, Any] | None) -> dict[str, Any]:
        return self.folder.clip(name, frames, self.request, comment)

    def kept(self, comment: dict[str, Any] | None) -> dict[str, Any]:
        """The clip of a run that ended early: its last level, or the keyframes so far, or nothing."""
        frames = self._level if self._level is not None else np.stack(self._keyframes) if self._keyframes else None
        return {} if frames is None else self.last("kept", frames, comment)

    def last(self, name: str, frames: Frames, comment: dict[str, Any] | None) -> dict[str, Any]:
        """The clip that the job leaves behind, with its frames."""
        self.folder.keep(frames)
        return self.clip(name, frames, comment)

    def _preview_due(self) -> bool:
        now = time.monotonic()
        if now - self._last_preview < self._preview_seconds:
            return False
        self._last_preview = now
        return True
