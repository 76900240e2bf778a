"""Progress of a generation as a progress bar or as JSON lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from cogvideo.cli import console
from cogvideo.events import (
    Event,
    Frames,
    FrameUpscaled,
    KeyframeCompleted,
    Loading,
    Progress,
    RoundCompleted,
    VideoCompleted,
)

if TYPE_CHECKING:
    from cogvideo.media.video import VideoWriter

DisplayedEvent = TypeVar("DisplayedEvent")

STAGES = {"keyframes": "关键帧 keyframes", "interpolate": "插帧 in-betweens", "superres": "超分 super-resolution"}


def watch(events: Iterable[Event], quiet: bool) -> tuple[Frames | None, bool]:
    """Consume all events, or those before Ctrl-C. Returns the latest frames, and whether the video is complete."""
    frames: Frames | None = None
    try:
        for event in shown(events, quiet):
            if isinstance(event, RoundCompleted | VideoCompleted):
                frames = event.frames
    except KeyboardInterrupt:
        return frames, False
    return frames, True


def shown(events: Iterable[DisplayedEvent], quiet: bool) -> Iterator[DisplayedEvent]:
    """Yield the same events, after they were shown in a progress bar and printed as JSON lines."""
    from tqdm import tqdm

    steps = console.Percent()
    with tqdm(unit="token", disable=quiet, dynamic_ncols=True) as bar:
        for event in events:
            _update_bar(bar, event)
            _print_event(steps, event)
            yield event


def encoded(events: Iterable[Event], writer: VideoWriter) -> Iterator[Event]:
    """Yield the same events. Final frames are encoded while later ones are being upscaled."""
    upscaled = False
    for event in events:
        if isinstance(event, FrameUpscaled):
            writer.add(event.frame[None])
            upscaled = True
        elif isinstance(event, VideoCompleted) and not upscaled:
            writer.add(event.frames)
        yield event


def _update_bar(bar: Any, event: object) -> None:
    if isinstance(event, Loading):
        bar.set_description_str(f"载入 loading {event.part}")
        if event.message and not bar.disable:
            console.notice(*event.message)
    elif isinstance(event, Progress):
        bar.total = event.total
        bar.set_description_str(STAGES.get(event.stage, event.stage), refresh=False)
        bar.update(event.done - bar.n)


def _print_event(steps: console.Percent, event: object) -> None:
    match event:
        case Loading():
            console.event("loading", part=event.part, done=event.done, total=event.total)
        case Progress():
            steps.progress(event.stage, event.done, event.total)
        case KeyframeCompleted():
            console.event("keyframe", index=event.index)
        case RoundCompleted():
            console.event("round", round=event.round, frames=len(event.frames))
