"""What can be seen of a job: its append-only log, folded into one frozen picture. No torch, no files.

A page never replays events. It shows the newest `View`, so a slow or late client misses nothing that matters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cogvideo.errors import BilingualText
from cogvideo.request import VideoRequest

ACTIVE = ("queued", "running")
"""Statuses of jobs that still want the accelerator; all others are final."""
FINAL = ("done", "stopped", "failed", "interrupted")


@dataclass(frozen=True)
class JobState:
    """A job at one moment. File names are relative to the job's folder."""

    id: str
    status: str
    request: VideoRequest
    created: float
    notes: tuple[BilingualText, ...] = ()
    """What the check at the door had to say: converted characters, words the model never saw."""
    comment: bool = True
    """Whether the settings are written into the video file."""
    model: str = ""
    """Name of the model that draws it."""
    memory: str | None = None
    """Memory preset that somebody asked for; None: what fits."""
    smaller: str | None = None
    """Memory preset to try next, where the memory was not enough."""
    keyframes: tuple[str, ...] = ()
    """Of drafts: the first of each, then the second of each, and so on."""
    level: int = -1
    """Last finished round of interpolation, -1 before the keyframes are complete."""
    video: str | None = None
    strip: str | None = None
    poster: str | None = None
    frames: int = 0
    """Frames in `strip` and `video`."""
    error: BilingualText | None = None
    stage: str | None = None
    done: int = 0
    total: int = 0
    """Tokens drawn, and to draw, super-resolution included."""
    seconds_left: float | None = None
    place: int | None = None
    """Jobs before this one that want the same accelerator, the running one included; None unless queued."""
    painting: tuple[int, *tuple[str, ...]] | None = None
    """Keyframe being drawn: its index and a data URI, one for each draft."""
    parts: tuple[int, int] | None = None
    """While a model is loaded: how many of its parts are there, and of how many."""
    stopping: str | None = None
    """"now" or "level" once a stop was asked for and has not acted yet."""

    @property
    def active(self) -> bool:
        return self.status in ACTIVE


def apply_log_entry(view: JobState, kind: str, data: dict[str, Any]) -> JobState:
    """The view after one more log entry."""
    if kind == "queued":
        return view
    if kind == "keyframe":
        return replace(view, keyframes=(*view.keyframes, data["file"]), painting=None)
    if kind == "level":
        return replace(view, level=data["level"], **_clip(data))
    passing: dict[str, Any] = dict.fromkeys(("place", "stage", "painting", "seconds_left", "stopping", "parts"))
    drawn = view.total if kind == "done" else data.get("done", view.done)
    view = replace(view, status=kind, done=drawn, **passing, **_clip(data))
    if "error" in data:
        view = replace(view, error=(data["error"][0], data["error"][1]), smaller=data.get("smaller"))
    return view


def _clip(data: dict[str, Any]) -> dict[str, Any]:
    return {name: data[name] for name in ("video", "strip", "poster", "frames") if name in data}
