"""The judge: frames in, what they show out. It measures against the world's own drawings and learns nothing.

A frame is read in two steps. The scene is the background that most of its pixels agree with; what differs from it is
the subject's mask, which gives place and size. Then every subject at every quarter turn is drawn there, and the drawing
that is closest names subject and angle. Frames are the world's small or large ones, before or after the codec.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cogvideo.training.render import background, render_state
from cogvideo.training.world import (
    FIELD,
    MOTIONS,
    SCENES,
    SUBJECTS,
    Clip,
    State,
)

Pixels = npt.NDArray[np.uint8]
VARIANTS = 2
_THRESHOLD = 100.0  # sum of the three channels' differences that no longer counts as background
_QUARTERS = 4


@dataclass(frozen=True)
class Reading:
    """What one frame shows; `state` is None where nothing stands out from the background."""

    scene: int
    variant: int
    subject: int
    state: State | None


def read_frame(frame: Pixels, known_subject: int | None = None, angles: int = _QUARTERS) -> Reading:
    """Read one frame [H, W, 3]; `known_subject` measures the state of that subject instead of finding which it is.

    `angles`: how many parts of a full turn are tried.
    """
    cell = frame.shape[0] // FIELD
    pixels = frame.astype(np.float32)
    scene, variant, distance = _read_scene(pixels, cell)
    box = _subject_box(distance, cell)
    if box is None:
        return Reading(scene, variant, -1, None)
    top, bottom, left, right = box
    # In cells: centre and longer side of what differs from the background.
    y, x = (top + bottom) / 2 / cell, (left + right) / 2 / cell
    size = max(bottom - top, right - left) / cell
    subjects = range(len(SUBJECTS)) if known_subject is None else (known_subject,)
    best = (np.inf, 0, State(y, x, size, 0.0))
    for subject in subjects:
        for angle in np.arange(angles) * (360.0 / angles):
            for side in (size, size - 0.25, size - 0.5):
                state = State(round(y * 8) / 8, round(x * 8) / 8, side, float(angle))
                drawn, _ = render_state(subject, scene, variant, state, cell)
                error = float(np.square(drawn - pixels).mean())
                if error < best[0]:
                    best = (error, subject, state)
    return Reading(scene, variant, best[1], best[2])


def _read_scene(pixels: npt.NDArray[np.float32], cell: int) -> tuple[int, int, npt.NDArray[np.float32]]:
    """The background that fits most of a frame, and each pixel's distance from it [H, W]."""
    pairs = [(scene, variant) for scene in range(len(SCENES)) for variant in range(VARIANTS)]
    candidates = [(*pair, np.abs(pixels - background(*pair, cell)).sum(2)) for pair in pairs]
    return min(candidates, key=lambda c: float(np.minimum(c[2], 2 * _THRESHOLD).mean()))


def _subject_box(distance: npt.NDArray[np.float32], cell: int) -> tuple[int, int, int, int] | None:
    """Top, bottom, left, right in pixels of the rows and columns where enough differs from the background."""
    mask = distance > _THRESHOLD
    enough = max(2, cell // 4)
    rows = np.nonzero(mask.sum(1) >= enough)[0]
    columns = np.nonzero(mask.sum(0) >= enough)[0]
    if not len(rows) or not len(columns):
        return None
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def name_motion(states: list[State | None], duration: float) -> int:
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
    turn = abs((seen.angle - meant.angle + 180) % 360 - 180) / 90
    return abs(seen.y - meant.y) + abs(seen.x - meant.x) + abs(seen.size - meant.size) + 0.5 * turn


def is_exact(seen: State | None, meant: State) -> bool:
    """Whether a state is right: place within half a cell, size within half, angle within an eighth of a turn."""
    if seen is None:
        return False
    turn = abs((seen.angle - meant.angle + 180) % 360 - 180)
    near = max(abs(seen.y - meant.y), abs(seen.x - meant.x), abs(seen.size - meant.size)) <= 0.5
    return near and turn <= 45
