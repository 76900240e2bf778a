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
from cogvideo.mosaic import side_by_side
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
        self._keyframes: list[Frames] = []  # of drafts: the first of each, then the second of each
        self._painted: list[str] = []
        self._level: Frames | None = None
        self._preview_seconds = preview_seconds
        self._last_preview = -preview_seconds

    def keep(self, event: Event) -> tuple[str, dict[str, Any]] | None:
        """Writes what the event brought; returns kind and data of its log entry, None for passing events."""
        if isinstance(event, KeyframeDone):
            self._keyframes.append(event.frame)
            file = self.folder.keyframe(event.index, event.frame, event.draft)
            return "keyframe", {"index": event.index, "file": file}
        if isinstance(event, LevelDone):
            self._level = event.frames
            if event.tokens is not None:
                self.folder.keep_tokens(event.tokens)
            return "level", {"level": event.level, **self.clip(f"level-{event.level}", event.frames, None)}
        if isinstance(event, Done):
            self.finished = event.frames
        return None

    def show(self, view: View, event: Event) -> View:
        """The view after a passing event."""
        if isinstance(event, Loading):
            return replace(view, stage="load", parts=(event.done, event.total))
        if isinstance(event, Progress):
            now = time.monotonic()
            self.pace.advance(event.stage, event.done, now)
            left = self.pace.seconds_left(self.plan, event.done)
            return replace(view, stage=event.stage, done=event.done, total=event.total, seconds_left=left)
        if isinstance(event, KeyframePainted):
            return self._paint(view, event)
        if isinstance(event, SuperResolved):
            return replace(view, stage="superres")
        return view

    def _paint(self, view: View, event: KeyframePainted) -> View:
        """The keyframe as far as it is painted, once it came for all drafts and the last picture is old enough."""
        if event.draft == 0:
            self._painted = []
            if not self._preview_due():
                return view
        elif len(self._painted) != event.draft:
            return view
        picture = base64.b64encode(thumbnail(event.frame)).decode()
        self._painted.append(f"data:image/webp;base64,{picture}")
        complete = len(self._painted) == self.request.drafts
        return replace(view, painting=(event.index, *self._painted)) if complete else view

    def clip(self, name: str, frames: Frames, comment: dict[str, Any] | None) -> dict[str, Any]:
        return self.folder.clip(name, frames, self.request, comment)

    def kept(self, comment: dict[str, Any] | None) -> dict[str, Any]:
        """The clip of a run that ended early: its last level, or the keyframes so far, or nothing."""
        drafts = self.request.drafts
        whole = self._keyframes[: len(self._keyframes) // drafts * drafts]
        frames = self._level
        if frames is None and whole:
            frames = side_by_side([np.stack(whole[draft::drafts]) for draft in range(drafts)])
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
