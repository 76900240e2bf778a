"""The judge: reads subject, scene and pose from frames of the synthetic world, and the motion from poses.

A frame of either size, before or after the codec, is read in three steps. `frame_classifier` classifies subject and
scene. Pixels that differ from the scene give candidates for place and size, at every eighth of a turn. The candidates
whose renderings are closest to the frame are then moved, resized and turned as long as they get closer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cogvideo.data.synthetic_render import background, render_state
from cogvideo.data.synthetic_vocabulary import MOTIONS
from cogvideo.data.synthetic_world import FIELD, VARIANTS, Clip, State
from cogvideo.events import Frames
from cogvideo.training.frame_classifier import classify_frames

_THRESHOLD = 100.0  # sum of the three channels' differences above which a pixel is not background
_BOX_THRESHOLDS = (50.0, _THRESHOLD, 200.0)  # low for pale subjects, high against the codec's faint halo
_FINALISTS = 4
_MARGINS = (1.0, 0.5, 0.0, -0.5)  # cells by which a subject may be larger than its visible box
_STEPS = (0.5, 0.25, 0.125)  # cells by which a finalist is moved and resized
_TURNS = 8  # angles of a full turn that are tried
_EQUAL_RATIO = 1.25  # ratio of squared differences up to which two angles fit equally well
_LARGEST = 5.0  # cells: the largest subject, and a margin


@dataclass(frozen=True)
class FrameReading:
    """Content of a frame; `state` is None if nothing differs from the background."""

    scene: int
    variant: int
    subject: int
    state: State | None


def read_frame(frame: Frames, known_subject: int | None = None, angles: int = _TURNS) -> FrameReading:
    """Read a frame [H, W, 3].

    Args:
        frame: uint8, of either size.
        known_subject: subject whose state is measured; None: the classifier's.
        angles: number of angles of a full turn that are tried.
    """
    return read_frames(frame[None], known_subject, angles)[0]


def read_frames(frames: Frames, known_subject: int | None = None, angles: int = _TURNS) -> list[FrameReading]:
    """Read frames [F, H, W, 3], each as `read_frame` does."""
    classes = [(known_subject if known_subject is not None else s, scene) for s, scene in classify_frames(frames)]
    return [_read(frame, subject, scene, angles) for frame, (subject, scene) in zip(frames, classes, strict=True)]


def _read(frame: Frames, subject: int, scene: int, angles: int) -> FrameReading:
    cell = frame.shape[0] // FIELD
    pixels = frame.astype(np.float32)
    variant, distance = _read_variant(pixels, scene, cell)
    if subject < 0:
        return FrameReading(scene, variant, -1, None)
    turns = [360.0 * i / angles for i in range(angles)]
    fitter = _PoseFitter(pixels, scene, variant, cell)
    guesses = [(fitter.error(subject, state), state) for state in _candidates(distance, cell, turns)]
    if not guesses:
        return FrameReading(scene, variant, -1, None)
    finalists: dict[float, tuple[float, State]] = {}  # one of each size: too small a guess ends in a local minimum
    for guess in sorted(guesses, key=lambda g: g[0]):
        finalists.setdefault(guess[1].size, guess)
    best = list(finalists.values())[:_FINALISTS]
    fitted = [fitter.improve(subject, state, error, 360.0 / angles) for error, state in best]
    _, state = min(fitted, key=lambda g: g[0])
    return FrameReading(scene, variant, subject, state)


class _PoseFitter:
    """Fits the state of a subject on a known scene to a frame, by rendering it."""

    def __init__(self, pixels: npt.NDArray[np.float32], scene: int, variant: int, cell: int) -> None:
        self._pixels = pixels
        self._scene, self._variant, self._cell = scene, variant, cell

    def error(self, subject: int, state: State) -> float:
        """Return the mean squared difference of the rendered state from the frame."""
        rendered, _ = render_state(subject, self._scene, self._variant, state, self._cell)
        return float(np.square(rendered - self._pixels).mean())

    def improve(self, subject: int, state: State, error: float, turn: float) -> tuple[float, State]:
        """Descend from a state to a local minimum of the error; returns both. `turn` is a step in degrees."""
        for step in _STEPS:
            better = True
            while better:
                better = False
                for near in _neighbours(state, step, turn):
                    value = self.error(subject, near)
                    if value < error:
                        error, state, better = value, near, True
        return error, state


def _neighbours(state: State, step: float, turn: float) -> list[State]:
    """Return the states one step away in place, size or angle, within the frame."""
    around = [
        replace(state, y=state.y + step),
        replace(state, y=state.y - step),
        replace(state, x=state.x + step),
        replace(state, x=state.x - step),
        replace(state, size=state.size + step),
        replace(state, size=state.size - step),
        replace(state, angle=(state.angle + turn) % 360.0),
    ]
    return [s for s in around if 0 <= s.y <= FIELD and 0 <= s.x <= FIELD and 0.5 <= s.size <= _LARGEST]


def _candidates(distance: npt.NDArray[np.float32], cell: int, turns: list[float]) -> list[State]:
    """Return candidate states: centres and longer sides, in cells, of the boxes that differ from the background."""
    boxes = {box for threshold in _BOX_THRESHOLDS if (box := _subject_box(distance, cell, threshold)) is not None}
    states = []
    for top, bottom, left, right in boxes:
        y, x = (round((a + b) / 2 / cell * 8) / 8 for a, b in ((top, bottom), (left, right)))
        size = min(max(bottom - top, right - left) / cell, _LARGEST)
        states += [State(y, x, max(size + margin, 0.5), turn) for margin in _MARGINS for turn in turns]
    return states


def _read_variant(pixels: npt.NDArray[np.float32], scene: int, cell: int) -> tuple[int, npt.NDArray[np.float32]]:
    """Return the drawing of the scene that fits most of a frame, and each pixel's distance from it [H, W]."""
    candidates = [(v, np.abs(pixels - background(scene, v, cell)).sum(2)) for v in range(VARIANTS)]
    return min(candidates, key=lambda c: float(np.minimum(c[1], 2 * _THRESHOLD).mean()))


def _subject_box(distance: npt.NDArray[np.float32], cell: int, threshold: float) -> tuple[int, int, int, int] | None:
    """Return top, bottom, left, right in pixels of the rows and columns that differ enough from the background.

    Returns None if there are none.
    """
    mask = distance > threshold
    enough = max(2, cell // 4)
    rows = np.nonzero(mask.sum(1) >= enough)[0]
    columns = np.nonzero(mask.sum(0) >= enough)[0]
    if not len(rows) or not len(columns):
        return None
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def classify_motion(states: list[State | None], duration: float) -> int:
    """Return the motion whose course from the first state is closest to the states of evenly spaced frames.

    Returns -1 if no frame has a state. `duration` is in seconds.
    """
    first = next((s for s in states if s is not None), None)
    if first is None:
        return -1
    times = [duration * i / (len(states) - 1) for i in range(len(states))]
    return int(np.argmin([_course_error(first, m, states, times) for m in range(len(MOTIONS))]))


def _course_error(first: State, motion: int, states: list[State | None], times: list[float]) -> float:
    course = Clip(0, 0, motion, 0, first.size, first.y, first.x, times[-1])
    total = 0.0
    for read, time in zip(states, times, strict=True):
        expected = course.state(time)
        total += 4.0 if read is None else state_distance(read, expected)
    return total


def state_distance(read: State, expected: State) -> float:
    """Return the distance of two states: cells of place and size, and half a cell for each quarter turn."""
    turn = _angle_between(read, expected) / 90
    return abs(read.y - expected.y) + abs(read.x - expected.x) + abs(read.size - expected.size) + 0.5 * turn


def is_exact(frame: Frames, reading: FrameReading, expected: State) -> bool:
    """Whether place and size are within half a cell of the expected state, and the angle within an eighth of a turn.

    Another angle passes if the expected one fits the frame about as well. After the codec, angles of a ball, a star or
    the sun cannot be distinguished.
    """
    read = reading.state
    if read is None or max(abs(read.y - expected.y), abs(read.x - expected.x), abs(read.size - expected.size)) > 0.5:
        return False
    if _angle_between(read, expected) <= 45:
        return True
    fitter = _PoseFitter(frame.astype(np.float32), reading.scene, reading.variant, frame.shape[0] // FIELD)
    error = fitter.error(reading.subject, read)
    return fitter.error(reading.subject, replace(read, angle=expected.angle)) <= _EQUAL_RATIO * error


def _angle_between(one: State, other: State) -> float:
    """Return the angle between two states, 0 to 180 degrees."""
    return abs((one.angle - other.angle + 180) % 360 - 180)
