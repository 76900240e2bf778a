"""The observable state of a job: its settings and its append-only log, folded into one frozen object. No files.

A client never replays the log. It shows the newest `JobState`, so a slow or late client misses nothing that matters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from cogvideo.jobs.log_entries import (
    Failed,
    Finished,
    KeyframeStored,
    LogEntry,
    Queued,
    RoundStored,
    Started,
    Stopped,
    VideoFiles,
)
from cogvideo.messages import BilingualText
from cogvideo.request import VideoRequest

JobStatus = Literal["queued", "running", "done", "stopped", "failed", "interrupted"]
ACTIVE: tuple[JobStatus, ...] = ("queued", "running")
"""Statuses of jobs that wait for the accelerator or use it."""
FINAL: tuple[JobStatus, ...] = ("done", "stopped", "failed", "interrupted")
StopRequest = Literal["now", "level"]
"""A stop that was requested and has not taken effect: at the next token, or after the current round."""


@dataclass(frozen=True)
class LoadingProgress:
    """`done` of `total` networks are loaded."""

    done: int
    total: int


@dataclass(frozen=True)
class PreviewImages:
    """The keyframe in progress: its index (0..4) and one image per draft, as data URIs."""

    index: int
    images: tuple[str, ...]


@dataclass(frozen=True)
class JobState:
    """A job at one moment. File names are relative to the job's folder."""

    id: str
    status: JobStatus
    request: VideoRequest
    created: float
    """Seconds since the epoch."""
    notes: tuple[BilingualText, ...] = ()
    """Messages of the prompt check: converted characters, words outside the training vocabulary."""
    embed_settings: bool = True
    """Whether the settings are written into the video file."""
    model: str = ""
    memory: str | None = None
    """Requested memory preset; None: the one that fits."""
    next_preset: str | None = None
    """Smaller memory preset to retry with, if memory was insufficient."""
    keyframes: tuple[str, ...] = ()
    """Image files. With drafts: the first keyframe of each draft, then the second of each, and so on."""
    round: int = -1
    """Last completed round of interpolation; -1 before the keyframes are complete."""
    video: str | None = None
    strip: str | None = None
    poster: str | None = None
    num_frames: int = 0
    """Frames in `strip` and `video`."""
    error: BilingualText | None = None
    stage: str | None = None
    tokens_done: int = 0
    tokens_total: int = 0
    """Tokens of all stages, super-resolution included."""
    seconds_left: float | None = None
    queue_position: int | None = None
    """Jobs ahead of this one, the running one included; None unless queued."""
    preview: PreviewImages | None = None
    loading: LoadingProgress | None = None
    stopping: StopRequest | None = None

    @property
    def active(self) -> bool:
        return self.status in ACTIVE

    def with_files(self, files: VideoFiles | None) -> JobState:
        """Return the state with another current video; without `files`, the same state."""
        if files is None:
            return self
        return replace(self, video=files.video, strip=files.strip, poster=files.poster, num_frames=files.frames)


def apply_log_entry(state: JobState, entry: LogEntry) -> JobState:
    """Return the state after one more log entry."""
    match entry:
        case Queued():
            return state
        case Started():
            return _without_progress(replace(state, status="running"))
        case KeyframeStored():
            return replace(state, keyframes=(*state.keyframes, entry.file), preview=None)
        case RoundStored():
            return replace(state, round=entry.round).with_files(entry.files)
    done = state.tokens_total if isinstance(entry, Finished) else entry.tokens_done
    state = _without_progress(
        replace(state, status=entry.kind, tokens_done=state.tokens_done if done is None else done)
    )
    if isinstance(entry, Failed):
        state = replace(state, error=entry.error, next_preset=entry.next_preset)
    elif isinstance(entry, Stopped) and entry.reason:
        state = replace(state, error=entry.reason)
    return state.with_files(entry.files)


def _without_progress(state: JobState) -> JobState:
    """Clear the fields that describe a job in progress."""
    return replace(state, queue_position=None, stage=None, preview=None, seconds_left=None, stopping=None, loading=None)
