"""Record one run of the pipeline: its events become files, log entries and progress updates."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace

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
from cogvideo.jobs.log_entries import KeyframeStored, LogEntry, RoundStored, VideoFiles
from cogvideo.jobs.state import JobState, LoadingProgress, PreviewImages
from cogvideo.media.images import side_by_side, thumbnail
from cogvideo.media.metadata import Metadata
from cogvideo.media.video import VideoWriter
from cogvideo.request import VideoRequest


class EventRecorder:
    """Writer of the files and log entries of one run. A context manager.

    The video of a round is encoded in a background thread while the next round is generated. Upscaled frames are
    encoded as they arrive.

    Args:
        artifacts: the job's folder
        request: the job's request
        metadata: settings to embed in the last video of the run; None for none
        log: receives each log entry, after the entry's files are written; called from both threads
    """

    def __init__(
        self,
        artifacts: JobArtifacts,
        request: VideoRequest,
        metadata: Metadata | None,
        log: Callable[[LogEntry], None],
    ) -> None:
        self._artifacts, self._request, self._metadata, self._log = artifacts, request, metadata, log
        self._keyframes: list[Frames] = []  # with drafts: the first keyframe of each, then the second of each
        self._round_frames: Frames | None = None
        self._final_frames: Frames | None = None
        self._round_video: Future[VideoFiles] | None = None  # of the last round
        self._upscaled_video: VideoWriter | None = None
        self._resources = ExitStack()
        self._encoder = self._resources.enter_context(ThreadPoolExecutor(1, "cogvideo-clips"))

    def __enter__(self) -> EventRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def record(self, event: Event) -> None:
        """Write the event's files and log entry. Also raises errors of the background encoder."""
        if self._round_video and self._round_video.done():
            self._round_video.result()
        if isinstance(event, KeyframeCompleted):
            self._keyframes.append(event.frame)
            file = self._artifacts.write_keyframe(event.index, event.frame, event.draft)
            self._log(KeyframeStored(event.index, file))
        elif isinstance(event, RoundCompleted):
            if self._round_video:
                self._round_video.result()  # one at a time, so that no error is lost
            self._round_frames = event.frames
            if event.tokens is not None:
                self._artifacts.write_tokens(event.tokens)
            self._round_video = self._encoder.submit(self._write_round, event.round, event.frames)
        elif isinstance(event, FrameUpscaled):
            self._upscaled_video = self._upscaled_video or self._resources.enter_context(
                self._artifacts.open_video("final.mp4", event.total, self._request, self._metadata)
            )
            self._upscaled_video.add(event.frame[None])
        elif isinstance(event, VideoCompleted):
            self._final_frames = event.frames

    def final_video(self) -> VideoFiles:
        """Complete the final video and return its files. Raises RuntimeError before `VideoCompleted`."""
        if self._final_frames is None or self._round_video is None:
            raise RuntimeError("The pipeline ended without its last event")
        self._artifacts.write_frames(self._final_frames)
        files = self._round_video.result()
        if self._upscaled_video is None:  # without super-resolution the last round is the final video
            return files
        self._artifacts.finish_video(self._upscaled_video)
        return self._artifacts.write_previews("final", self._final_frames)

    def partial_video(self) -> VideoFiles | None:
        """Write the video of a run that ended early: its last round, or else its keyframes.

        Returns None if there is no complete keyframe.
        """
        if self._round_video:
            wait([self._round_video])  # its log entry comes first
        drafts = self._request.num_drafts
        complete = self._keyframes[: len(self._keyframes) // drafts * drafts]
        frames = self._round_frames
        if frames is None and complete:
            frames = side_by_side([np.stack(complete[draft::drafts]) for draft in range(drafts)])
        if frames is None:
            return None
        self._artifacts.write_frames(frames)
        return self._artifacts.write_video("kept", frames, self._request, self._metadata)

    def _write_round(self, number: int, frames: Frames) -> VideoFiles:
        request = self._request
        if request.num_drafts > 1 or (number == request.rounds and not request.superres):  # the last video
            files = self._artifacts.write_video("final", frames, request, self._metadata)
        else:
            files = self._artifacts.write_video(f"level-{number}", frames, request)
        self._log(RoundStored(number, files))
        return files


class ProgressTracker:
    """Transient job progress that is not stored: token counts, time left, keyframe preview.

    Args:
        plan: tokens per stage
        estimator: measured throughput, updated by each `Progress`
        drafts: number of videos generated side by side
        preview_seconds: minimum time between two previews
    """

    def __init__(
        self, plan: dict[str, int], estimator: ThroughputEstimator, drafts: int, preview_seconds: float
    ) -> None:
        self._plan, self._estimator, self._drafts = plan, estimator, drafts
        self._images: list[str] = []  # of one preview, draft by draft
        self._preview_seconds = preview_seconds
        self._last_preview = -preview_seconds

    def update(self, state: JobState, event: Event) -> JobState:
        """Return the state after an event."""
        if isinstance(event, Loading):
            return replace(state, stage="load", loading=LoadingProgress(event.done, event.total))
        if isinstance(event, Progress):
            self._estimator.advance(event.stage, event.done, time.monotonic())
            left = self._estimator.seconds_left(self._plan, event.done)
            return replace(
                state, stage=event.stage, tokens_done=event.done, tokens_total=event.total, seconds_left=left
            )
        if isinstance(event, KeyframePreview):
            return self._update_preview(state, event)
        if isinstance(event, FrameUpscaled):
            return replace(state, stage="superres")
        return state

    def _update_preview(self, state: JobState, event: KeyframePreview) -> JobState:
        """Replace the preview once images of all drafts have arrived, at most once per `preview_seconds`."""
        if event.draft == 0:
            self._images = []
            if not self._preview_due():
                return state
        elif len(self._images) != event.draft:
            return state
        image = base64.b64encode(thumbnail(event.frame)).decode()
        self._images.append(f"data:image/webp;base64,{image}")
        complete = len(self._images) == self._drafts
        return replace(state, preview=PreviewImages(event.index, tuple(self._images))) if complete else state

    def _preview_due(self) -> bool:
        now = time.monotonic()
        if now - self._last_preview < self._preview_seconds:
            return False
        self._last_preview = now
        return True
