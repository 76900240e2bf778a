"""The judge: frames in, what they show out: who and where by a classifier, the state by measuring against drawings.

A frame is read in three steps. A classifier that learnt from drawings alone names subject and scene (see
`cogvideo.training.frame_classifier`). What differs from the scene gives places and sizes to try: the subject is drawn
there at every eighth of a turn. The drawings that are closest are then moved, grown and turned as long as that brings
them closer. Frames are the world's small or large ones, before or after the codec.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cogvideo.data.synthetic_render import background, render_state
from cogvideo.data.synthetic_vocabulary import MOTIONS
from cogvideo.data.synthetic_world import FIELD, Clip, State
from cogvideo.training.frame_classifier import classify_frames

Pixels = npt.NDArray[np.uint8]
VARIANTS = 2
_THRESHOLD = 100.0  # sum of the three channels' differences that no longer counts as background
_BOX_THRESHOLDS = (50.0, _THRESHOLD, 200.0)  # a pale subject hardly differs; the codec's faint halo does a little
_FINALISTS = 4
_MORE = (1.0, 0.5, 0.0, -0.5)  # cells by which a subject may be larger than what stands out of it
_STEPS = (0.5, 0.25, 0.125)  # cells by which a finalist is moved and grown
_TURNS = 8  # parts of a full turn that are tried
_AS_GOOD = 1.25  # ratio of squared differences that tells no two angles apart
_LARGEST = 5.0  # cells of the largest subject there is, and a little more


@dataclass(frozen=True)
class FrameReading:
    """What one frame shows; `state` is None where nothing stands out from the background."""

    scene: int
    variant: int
    subject: int
    state: State | None


def read_frame(frame: Pixels, known_subject: int | None = None, angles: int = _TURNS) -> FrameReading:
    """Read one frame [H, W, 3]; `known_subject` measures the state of that subject instead of naming which it is.

    `angles`: how many parts of a full turn are tried.
    """
    return read_frames(frame[None], known_subject, angles)[0]


def read_frames(frames: Pixels, known_subject: int | None = None, angles: int = _TURNS) -> list[FrameReading]:
    """Read frames [F, H, W, 3], each as `read_frame` does."""
    names = [(known_subject if known_subject is not None else s, scene) for s, scene in classify_frames(frames)]
    return [_read(frame, *name, angles) for frame, name in zip(frames, names, strict=True)]


def _read(frame: Pixels, subject: int, scene: int, angles: int) -> FrameReading:
    cell = frame.shape[0] // FIELD
    pixels = frame.astype(np.float32)
    variant, distance = _read_variant(pixels, scene, cell)
    if subject < 0:
        return FrameReading(scene, variant, -1, None)
    turns = [360.0 * i / angles for i in range(angles)]
    easel = _PoseFitter(pixels, scene, variant, cell)
    guesses = [(easel.error(subject, state), state) for state in _candidates(distance, cell, turns)]
    if not guesses:
        return FrameReading(scene, variant, -1, None)
    finalists: dict[float, tuple[float, State]] = {}  # the best of each size: what begins too small grows into a dent
    for guess in sorted(guesses, key=lambda g: g[0]):
        finalists.setdefault(guess[1].size, guess)
    best = list(finalists.values())[:_FINALISTS]
    _, state = min((easel.improve(*g, subject, 360.0 / angles) for g in best), key=lambda g: g[0])
    return FrameReading(scene, variant, subject, state)


class _PoseFitter:
    """Draws subjects on the scene that was read, and says how far that is from the frame."""

    def __init__(self, pixels: npt.NDArray[np.float32], scene: int, variant: int, cell: int) -> None:
        self._pixels = pixels
        self._place = (scene, variant, cell)

    def error(self, subject: int, state: State) -> float:
        scene, variant, cell = self._place
        drawn, _ = render_state(subject, scene, variant, state, cell)
        return float(np.square(drawn - self._pixels).mean())

    def improve(self, error: float, state: State, subject: int, turn: float) -> tuple[float, State]:
        """Climb from a guess to the closest drawing around it."""
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
    """States one step away in place, size or angle, within the picture."""
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
    """Where, how large and how turned the subject may be: centre and longer side, in cells, of what stands out."""
    boxes = {box for threshold in _BOX_THRESHOLDS if (box := _subject_box(distance, cell, threshold)) is not None}
    states = []
    for top, bottom, left, right in boxes:
        y, x = (round((a + b) / 2 / cell * 8) / 8 for a, b in ((top, bottom), (left, right)))
        size = min(max(bottom - top, right - left) / cell, _LARGEST)
        states += [State(y, x, max(size + more, 0.5), turn) for more in _MORE for turn in turns]
    return states


def _read_variant(pixels: npt.NDArray[np.float32], scene: int, cell: int) -> tuple[int, npt.NDArray[np.float32]]:
    """The drawing of the scene that fits most of a frame, and each pixel's distance from it [H, W]."""
    candidates = [(v, np.abs(pixels - background(scene, v, cell)).sum(2)) for v in range(VARIANTS)]
    return min(candidates, key=lambda c: float(np.minimum(c[1], 2 * _THRESHOLD).mean()))


def _subject_box(distance: npt.NDArray[np.float32], cell: int, threshold: float) -> tuple[int, int, int, int] | None:
    """Top, bottom, left, right in pixels of the rows and columns where enough differs from the background."""
    mask = distance > threshold
    enough = max(2, cell // 4)
    rows = np.nonzero(mask.sum(1) >= enough)[0]
    columns = np.nonzero(mask.sum(0) >= enough)[0]
    if not len(rows) or not len(columns):
        return None
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def classify_motion(states: list[State | None], duration: float) -> int:
    """The motion whose course, started where the clip starts, is nearest to the states of evenly spaced frames."""
    first = next((s for s in states if s is not None), None)
    if first is None:
        return -1
    times = [duration * i / (len(states) - 1) for i in range(len(states))]
    return int(np.argmin([_course_error(first, m, states, times) for m in range(len(MOTIONS))]))


def _course_error(first: State, motion: int, states: list[State | None], times: list[float]) -> float:
    course = Clip(0, 0, motion, 0, first.size, first.y, first.x, times[-1])
    total = 0.0
    for seen, time in zip(states, times, strict=True):
        meant = course.state(time)
        total += 4.0 if seen is None else state_distance(seen, meant)
    return total


def state_distance(seen: State, meant: State) -> float:
    """How far two states are apart: cells of place and size, and half a cell for each quarter turn."""
    turn = _turn_between(seen, meant) / 90
    return abs(seen.y - meant.y) + abs(seen.x - meant.x) + abs(seen.size - meant.size) + 0.5 * turn


def is_exact(frame: Pixels, reading: FrameReading, meant: State) -> bool:
    """Whether a frame shows its subject as meant: place within half a cell, size within half, angle within an eighth
    of a turn, or an angle that is no worse an explanation of the frame than the one that was read: of a ball, a star or
    the sun the codec keeps too little to tell.
    """
    seen = reading.state
    if seen is None or max(abs(seen.y - meant.y), abs(seen.x - meant.x), abs(seen.size - meant.size)) > 0.5:
        return False
    if _turn_between(seen, meant) <= 45:
        return True
    easel = _PoseFitter(frame.astype(np.float32), reading.scene, reading.variant, frame.shape[0] // FIELD)
    read = easel.error(reading.subject, seen)
    return easel.error(reading.subject, replace(seen, angle=meant.angle)) <= _AS_GOOD * read


def _turn_between(one: State, other: State) -> float:
    return abs((one.angle - other.angle + 180) % 360 - 180)
