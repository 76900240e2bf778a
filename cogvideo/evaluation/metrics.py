"""What the judge's readings say of clips: verdicts on keyframes and films, and figures of single frames.

A film is all frames of a clip, [F, H, W, 3]; its keyframes are evenly spaced among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cogvideo.data.synthetic_render import render_state
from cogvideo.data.synthetic_vocabulary import MOTIONS
from cogvideo.data.synthetic_world import FIELD, Clip, State
from cogvideo.evaluation.frame_reader import FrameReading, Pixels, classify_motion, is_exact, read_frame, read_frames
from cogvideo.training.frame_classifier import classify_frames

KEYFRAMES = 5
TRAVELS = [MOTIONS.index(name) for name in ("向左", "向右", "向上", "向下")]
_CHANGE_PLACE = [*TRAVELS, MOTIONS.index("跳")]
_CLEARLY = 0.99  # less is rounding


@dataclass(frozen=True)
class KeyframeVerdict:
    """What the judge found in the keyframes of one clip."""

    subject: bool
    scene: bool
    motion: bool
    exact: bool
    """Right subject in all five, and each in the state that the movement, begun where the first one is, leads to."""
    seen_motion: int


@dataclass(frozen=True)
class VideoVerdict:
    """What the judge found in all frames of one clip."""

    subject_consistent: bool
    """The right subject in every frame."""
    consistent_fraction: float
    """Share of the frames that show the right subject."""
    better_than_crossfade: bool
    """In-betweens are nearer to drawings of the true in-between state than cross-fades of the keyframes are."""
    better_than_crossfade_decoded: bool
    """The same against those drawings as the codec shows them: what it loses counts neither way. (Fading two frames
    averages its errors away, which wins by itself where a subject grows by a pixel.)"""
    nearer: bool | None
    """In-betweens show the subject nearer to its true place than cross-fades do, as the judge reads both; None where it
    stays in its place, since it does so in a fade as well."""


def judge_keyframes(clip: Clip, frames: Pixels) -> KeyframeVerdict:
    """Compare keyframes [5, H, W, 3] with the clip that was asked for."""
    readings = read_frames(frames)
    seen = classify_motion([reading.state for reading in readings], clip.duration)
    return KeyframeVerdict(
        subject=_most_common(r.subject for r in readings) == clip.subject,
        scene=_most_common(r.scene for r in readings) == clip.scene,
        motion=seen == clip.motion,
        exact=_all_exact(clip, frames, readings),
        seen_motion=seen,
    )


def judge_video(clip: Clip, frames: Pixels, through_codec: Callable[[Pixels], Pixels]) -> VideoVerdict:
    """Look at all frames [F, H, W, 3] of a clip. `through_codec`: frames [N, H, W, 3] -> as the codec shows them."""
    right = [subject == clip.subject for subject, _ in classify_frames(frames)]
    moves = clip.motion in _CHANGE_PLACE
    meant = true_in_between_frames(clip, frames)
    drawn = coded = nearer = False
    if meant is not None:
        truth = np.stack([_draw(reading, frames.shape[1] // FIELD) for reading in meant])
        drawn, coded = (better_than_crossfade(frames, t) for t in (truth, through_codec(truth)))
        nearer = moves and is_nearer(frames, meant)
    return VideoVerdict(all(right), float(np.mean(right)), drawn, coded, nearer if moves else None)


def better_than_crossfade(frames: Pixels, truth: Pixels) -> bool:
    """Whether in-betweens are closer to the truth [N, H, W, 3] than cross-fades of the keyframes around them."""
    ours = sum(map(mean_square, _pick_betweens(frames), truth))
    return ours < _CLEARLY * sum(map(mean_square, crossfade_frames(frames), truth))


def is_nearer(frames: Pixels, meant: Sequence[FrameReading]) -> bool:
    """Whether in-betweens are read nearer to the places that are `meant` than cross-fades of the keyframes are."""
    fades = np.rint(crossfade_frames(frames)).astype(np.uint8)
    ours, faded = (
        sum(_way_off(reading, m) for reading, m in zip(read_frames(seen, meant[0].subject), meant, strict=True))
        for seen in (_pick_betweens(frames), fades)
    )
    return ours < _CLEARLY * faded


def _way_off(reading: FrameReading, meant: FrameReading) -> float:
    """Cells between the centre that was read and the one that is meant; nothing to be seen is a whole field away."""
    if reading.state is None or meant.state is None:
        return float(FIELD)
    return math.hypot(reading.state.y - meant.state.y, reading.state.x - meant.state.x)


def crossfade_frames(frames: Pixels) -> npt.NDArray[np.float64]:
    """Cross-fades of the keyframes around each in-between [N, H, W, 3]."""
    around = _betweens(len(frames))
    return np.stack([crossfade(frames[a], frames[b], (index - a) / (b - a)) for a, index, b in around])


def _pick_betweens(frames: Pixels) -> Pixels:
    return frames[[index for _, index, _ in _betweens(len(frames))]]


def true_in_between_frames(clip: Clip, frames: Pixels) -> list[FrameReading] | None:
    """What all in-betweens should show: the subject in the state that the movement leads to from the state read in the
    keyframe before. None where a keyframe shows nothing.
    """
    times = clip.frame_times(len(frames))
    readings: dict[int, FrameReading] = {}
    meant = []
    for start, index, _ in _betweens(len(frames)):
        if start not in readings:
            readings[start] = read_frame(frames[start], clip.subject)
        reading = readings[start]
        if reading.state is None:
            return None
        meant.append(replace(reading, state=_moved(clip, reading.state, times[start], times[index])))
    return meant


def _draw(reading: FrameReading, cell: int) -> Pixels:
    assert reading.state is not None
    return render_state(reading.subject, reading.scene, reading.variant, reading.state, cell)[0]


def _betweens(count: int) -> list[tuple[int, int, int]]:
    """Of each in-between of `count` frames: the number of the keyframe before it, its own, that of the one after it."""
    step = (count - 1) // (KEYFRAMES - 1)
    return [(i - i % step, i, i - i % step + step) for i in range(count - 1) if i % step]


def crossfade(first: Pixels, second: Pixels, share: float) -> npt.NDArray[np.float64]:
    """(1 - share) of the first picture and `share` of the second."""
    return (1 - share) * first.astype(np.float64) + share * second.astype(np.float64)


def _moved(clip: Clip, seen: State, since: float, until: float) -> State:
    """The state at `until` of a subject that was in the state `seen` at `since`, both in seconds of the clip."""
    before, after = clip.state(since), clip.state(until)
    return State(
        seen.y + after.y - before.y,
        seen.x + after.x - before.x,
        seen.size + after.size - before.size,
        (seen.angle + after.angle - before.angle) % 360.0,
    )


def distance_travelled(clip: Clip, frames: Pixels) -> float:
    """Cells that the subject of a clip that travels moves from the first to the last frame, along its direction."""
    first, last = (read_frame(frames[i], clip.subject).state for i in (0, -1))
    if first is None or last is None:
        return 0.0
    down, right = {"向左": (0, -1), "向右": (0, 1), "向上": (-1, 0), "向下": (1, 0)}[MOTIONS[clip.motion]]
    return down * (last.y - first.y) + right * (last.x - first.x)


def mean_square(frame: npt.NDArray[np.generic], truth: npt.NDArray[np.generic]) -> float:
    """Mean squared difference of two pictures, in squared steps of 0 to 255."""
    return float(np.square(frame.astype(np.float64) - truth.astype(np.float64)).mean())


def psnr(frame: npt.NDArray[np.generic], truth: npt.NDArray[np.generic]) -> float:
    """Peak signal-to-noise ratio in dB, at most 60 (equal pictures have none)."""
    return float(-10 * np.log10(max(mean_square(frame, truth) / 255.0**2, 1e-6)))


def sharpness(frame: Pixels) -> float:
    """Mean strength of edges: how far each pixel is from the mean of its four neighbours."""
    grey = frame.astype(np.float64).mean(2)
    inner = grey[1:-1, 1:-1]
    return float(np.abs(4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]).mean())


def _all_exact(clip: Clip, frames: Pixels, readings: Sequence[FrameReading]) -> bool:
    """Whether all states follow the motion's course from the first one, with the right subject in every frame."""
    first = readings[0].state
    if first is None or any(r.subject != clip.subject for r in readings):
        return False
    course = replace(clip, size=first.size, y=first.y, x=first.x).states(clip.frame_times(len(readings)))
    return all(is_exact(*seen) for seen in zip(frames, readings, course, strict=True))


def _most_common(values: Iterable[int]) -> int:
    return int(np.bincount(np.array(list(values)) + 1).argmax()) - 1
