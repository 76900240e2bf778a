"""Verdicts on keyframes and videos from the judge's readings, and image metrics.

A video has all frames of a clip, [F, H, W, 3]. Its five keyframes are evenly spaced among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cogvideo.data.dataset import KEYFRAMES
from cogvideo.data.synthetic_render import render_state
from cogvideo.data.synthetic_vocabulary import MOTIONS
from cogvideo.data.synthetic_world import FIELD, Clip, State
from cogvideo.evaluation.frame_reader import FrameReading, classify_motion, is_exact, read_frame, read_frames
from cogvideo.events import Frames
from cogvideo.training.frame_classifier import classify_frames

TRAVELS = [MOTIONS.index(name) for name in ("向左", "向右", "向上", "向下")]
"""Motions that move the subject in one direction."""
_CHANGE_PLACE = [*TRAVELS, MOTIONS.index("跳")]
_CLEARLY = 0.99  # ratio of errors; smaller differences are rounding


@dataclass(frozen=True)
class KeyframeVerdict:
    """Judgement of the keyframes of a clip."""

    subject: bool
    scene: bool
    motion: bool
    exact: bool
    """The correct subject in all five, in the states that the motion leads to from the first one."""
    seen_motion: int


@dataclass(frozen=True)
class VideoVerdict:
    """Judgement of all frames of a clip."""

    subject_consistent: bool
    """The correct subject in every frame."""
    consistent_fraction: float
    """Fraction of frames with the correct subject."""
    better_than_crossfade: bool
    """In-betweens are closer to renderings of the true state than cross-fades of the keyframes are."""
    better_than_crossfade_decoded: bool
    """The same, with renderings that passed the codec, so its losses do not count. Otherwise a cross-fade has an
    advantage, since it averages the codec's errors."""
    nearer: bool | None
    """The judge reads the subject nearer to its true place in in-betweens than in cross-fades. None if the motion keeps
    its place, as a cross-fade does too."""


def judge_keyframes(clip: Clip, frames: Frames) -> KeyframeVerdict:
    """Compare keyframes [5, H, W, 3] with the requested clip."""
    readings = read_frames(frames)
    seen = classify_motion([reading.state for reading in readings], clip.duration)
    return KeyframeVerdict(
        subject=_most_common(r.subject for r in readings) == clip.subject,
        scene=_most_common(r.scene for r in readings) == clip.scene,
        motion=seen == clip.motion,
        exact=_all_exact(clip, frames, readings),
        seen_motion=seen,
    )


def judge_video(clip: Clip, frames: Frames, through_codec: Callable[[Frames], Frames]) -> VideoVerdict:
    """Judge all frames [F, H, W, 3] of a clip. `through_codec` encodes and decodes frames [N, H, W, 3]."""
    is_correct = [subject == clip.subject for subject, _ in classify_frames(frames)]
    moves = clip.motion in _CHANGE_PLACE
    expected = true_in_between_frames(clip, frames)
    better = better_decoded = nearer = False
    if expected is not None:
        truth = np.stack([_render(reading, frames.shape[1] // FIELD) for reading in expected])
        better, better_decoded = (better_than_crossfade(frames, t) for t in (truth, through_codec(truth)))
        nearer = moves and is_nearer(frames, expected)
    return VideoVerdict(
        subject_consistent=all(is_correct),
        consistent_fraction=float(np.mean(is_correct)),
        better_than_crossfade=better,
        better_than_crossfade_decoded=better_decoded,
        nearer=nearer if moves else None,
    )


def better_than_crossfade(frames: Frames, truth: Frames) -> bool:
    """Whether in-betweens are closer to the truth [N, H, W, 3] than cross-fades of the keyframes around them."""
    ours = sum(map(mean_square, _in_betweens(frames), truth))
    return ours < _CLEARLY * sum(map(mean_square, crossfade_frames(frames), truth))


def is_nearer(frames: Frames, expected: Sequence[FrameReading]) -> bool:
    """Whether the judge reads in-betweens nearer to the expected places than cross-fades of the keyframes."""
    fades = np.rint(crossfade_frames(frames)).astype(np.uint8)
    ours, faded = (
        sum(map(_distance, read_frames(shown, expected[0].subject), expected))
        for shown in (_in_betweens(frames), fades)
    )
    return ours < _CLEARLY * faded


def _distance(reading: FrameReading, expected: FrameReading) -> float:
    """Return the cells between the centres of two readings; the side of the field if one of them has no state."""
    if reading.state is None or expected.state is None:
        return float(FIELD)
    return math.hypot(reading.state.y - expected.state.y, reading.state.x - expected.state.x)


def crossfade_frames(frames: Frames) -> npt.NDArray[np.float64]:
    """Return a cross-fade of the surrounding keyframes for each in-between, [N, H, W, 3]."""
    around = _in_between_indices(len(frames))
    return np.stack([crossfade(frames[a], frames[b], (index - a) / (b - a)) for a, index, b in around])


def _in_betweens(frames: Frames) -> Frames:
    """Return the frames that are no keyframes, [N, H, W, 3]."""
    return frames[[index for _, index, _ in _in_between_indices(len(frames))]]


def true_in_between_frames(clip: Clip, frames: Frames) -> list[FrameReading] | None:
    """Return what the in-betweens should show: the states that the motion leads to from the keyframe before.

    Returns None if a keyframe shows no subject.
    """
    times = clip.frame_times(len(frames))
    readings: dict[int, FrameReading] = {}
    expected = []
    for start, index, _ in _in_between_indices(len(frames)):
        if start not in readings:
            readings[start] = read_frame(frames[start], clip.subject)
        reading = readings[start]
        if reading.state is None:
            return None
        expected.append(replace(reading, state=_moved(clip, reading.state, times[start], times[index])))
    return expected


def _render(reading: FrameReading, cell: int) -> Frames:
    assert reading.state is not None
    return render_state(reading.subject, reading.scene, reading.variant, reading.state, cell)[0]


def _in_between_indices(count: int) -> list[tuple[int, int, int]]:
    """Return, for each in-between of `count` frames, the indices of the keyframe before it, its own, and the next's."""
    step = (count - 1) // (KEYFRAMES - 1)
    return [(i - i % step, i, i - i % step + step) for i in range(count - 1) if i % step]


def crossfade(first: Frames, second: Frames, weight: float) -> npt.NDArray[np.float64]:
    """Mix two frames; `weight` (0 to 1) is that of the second."""
    return (1 - weight) * first.astype(np.float64) + weight * second.astype(np.float64)


def _moved(clip: Clip, read: State, since: float, until: float) -> State:
    """Return the state at `until` of a subject in the state `read` at `since`, both in seconds of the clip."""
    before, after = clip.state(since), clip.state(until)
    return State(
        read.y + after.y - before.y,
        read.x + after.x - before.x,
        read.size + after.size - before.size,
        (read.angle + after.angle - before.angle) % 360.0,
    )


def distance_travelled(clip: Clip, frames: Frames) -> float:
    """Return the cells that a travelling subject moves from the first to the last frame, along its direction.

    Returns 0 if one of the two frames shows no subject.
    """
    first, last = (read_frame(frames[i], clip.subject).state for i in (0, -1))
    if first is None or last is None:
        return 0.0
    down, right = {"向左": (0, -1), "向右": (0, 1), "向上": (-1, 0), "向下": (1, 0)}[MOTIONS[clip.motion]]
    return down * (last.y - first.y) + right * (last.x - first.x)


def mean_square(frame: npt.NDArray[np.generic], truth: npt.NDArray[np.generic]) -> float:
    """Return the mean squared difference of two images with values from 0 to 255."""
    return float(np.square(frame.astype(np.float64) - truth.astype(np.float64)).mean())


def psnr(frame: npt.NDArray[np.generic], truth: npt.NDArray[np.generic]) -> float:
    """Return the peak signal-to-noise ratio in dB, at most 60, also for equal images."""
    return float(-10 * np.log10(max(mean_square(frame, truth) / 255.0**2, 1e-6)))


def sharpness(frame: Frames) -> float:
    """Return the mean strength of edges: the absolute difference of each pixel from its four neighbours."""
    grey = frame.astype(np.float64).mean(2)
    inner = grey[1:-1, 1:-1]
    return float(np.abs(4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]).mean())


def _all_exact(clip: Clip, frames: Frames, readings: Sequence[FrameReading]) -> bool:
    """Whether all states follow the motion's course from the first one, with the correct subject in every frame."""
    first = readings[0].state
    if first is None or any(r.subject != clip.subject for r in readings):
        return False
    course = replace(clip, size=first.size, y=first.y, x=first.x).states(clip.frame_times(len(readings)))
    return all(map(is_exact, frames, readings, course))


def _most_common(values: Iterable[int]) -> int:
    return int(np.bincount(np.array(list(values)) + 1).argmax()) - 1
