"""Progress of a generation: events -> a progress bar or JSON lines."""

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
    """Follows a video to its end, or to Ctrl-C: the best frames there are, and whether they are the finished clip."""
    best: Frames | None = None
    try:
        for event in shown(events, quiet):
            if isinstance(event, RoundCompleted | VideoCompleted):
                best = event.frames
    except KeyboardInterrupt:
        return best, False
    return best, True


def shown(events: Iterable[DisplayedEvent], quiet: bool) -> Iterator[DisplayedEvent]:
    """The same events; on the way they are shown to a person as a bar, and told to a program."""
    from tqdm import tqdm

    steps = console.Percent()
    with tqdm(unit="token", disable=quiet, dynamic_ncols=True) as bar:
        for event in events:
            _show(bar, event)
            _tell(steps, event)
            yield event


def encoded(events: Iterable[Event], film: VideoWriter) -> Iterator[Event]:
    """The same events; frames of the finished clip are encoded while later ones are still being enlarged."""
    enlarged = False
    for event in events:
        if isinstance(event, FrameUpscaled):
            film.add(event.frame[None])
            enlarged = True
        elif isinstance(event, VideoCompleted) and not enlarged:
            film.add(event.frames)
        yield event


def _show(bar: Any, event: object) -> None:
    if isinstance(event, Loading):
        bar.set_description_str(f"载入 loading {event.part}")
        if event.message and not bar.disable:
            console.notice(*event.message)
    elif isinstance(event, Progress):
        bar.total = event.total
        bar.set_description_str(STAGES.get(event.stage, event.stage), refresh=False)
        bar.update(event.done - bar.n)


def _tell(steps: console.Percent, event: object) -> None:
    """The same for a program."""
    match event:
        case Loading():
            console.event("loading", part=event.part, done=event.done, total=event.total)
        case Progress():
            steps.progress(event.stage, event.done, event.total)
        case KeyframeCompleted():
            console.event("keyframe", index=event.index)
        case RoundCompleted():
            console.event("level", level=event.round, frames=len(event.frames))
