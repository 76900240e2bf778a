"""Clips of the synthetic world: sampling, the subject's state at any time, captions, and held-out pairs.

`synthetic_render` turns states into pixels. Lengths are in cells. A cell is the patch of one token, and a frame has
`FIELD` x `FIELD` cells. Subjects move one cell a second. The five keyframes of four seconds are thus one cell apart,
those of two seconds half a cell, and the frame rate is visible in the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cogvideo.data.synthetic_vocabulary import (
    MOTIONS,
    SCENE_PHRASES,
    SCENES,
    SIZE_WORDS,
    SUBJECTS,
    TEMPLATES,
    UNDIRECTED_VERB,
    verb_phrases,
)
from cogvideo.errors import RequestError

FIELD: Final = 8
"""Cells along each side of a frame."""

DURATIONS: Final = (4.0, 2.0, 1.0, 0.5)
"""Durations of clips in seconds, first to last keyframe."""
DURATION_PROBABILITIES: Final = (0.5, 0.25, 0.15, 0.1)
VARIANTS: Final = 2
"""Drawings of each scene."""

BASE_SIZES: Final = (2, 3, 4)
"""Sizes in cells of subjects that keep their size."""
SIZE_PROBABILITIES: Final = np.array((0.15, 0.7, 0.15))
"""Default probability of each size."""

JUMP_HEIGHT: Final = 2.0
"""Cells."""
JUMP_PERIOD: Final = 2.0
"""Seconds."""
SPEED: Final = 1.0
"""Cells a second."""
GROWTH: Final = 0.5
"""Cells a second by which the side of a growing subject increases."""
TURN: Final = 90.0
"""Degrees a second, clockwise."""
FINEST_TURN: Final = 360 / 64
"""Degrees. All angles are multiples of it: it moves a subject's edge by about one pixel of a small frame."""


@dataclass(frozen=True)
class State:
    """Pose of the subject: centre (y, x) and side in cells, angle in degrees clockwise."""

    y: float
    x: float
    size: float
    angle: float


def _quantised(y: float, x: float, size: float, angle: float) -> State:
    """Return the state with its place rounded to pixels of a small frame and its angle to `FINEST_TURN`."""
    turns = round(angle / FINEST_TURN) * FINEST_TURN
    return State(round(y * FIELD) / FIELD, round(x * FIELD) / FIELD, size, turns % 360.0)


@dataclass(frozen=True)
class Drift:
    """A movement without a name: changes a second in cells and degrees."""

    down: float
    right: float
    growth: float
    turn: float


@dataclass(frozen=True)
class Clip:
    """A clip of the world. `y` and `x` are the subject's centre at time 0, in cells from the top left corner."""

    subject: int
    scene: int
    motion: int
    variant: int
    """Drawing of the scene, 0 to `VARIANTS` - 1."""
    size: float
    y: float
    x: float
    duration: float
    """Seconds from the first to the last keyframe."""
    drift: Drift | None = None
    """Movement in place of `motion`, which is then -1."""

    def state(self, seconds: float) -> State:
        """Return the subject's state `seconds` after the first frame.

        Places are multiples of an eighth of a cell (a pixel of a small frame), angles of `FINEST_TURN`.
        """
        y, x, size, angle = self.y, self.x, self.size, 0.0
        if self.drift is not None:
            y, x = y + self.drift.down * seconds, x + self.drift.right * seconds
            size, angle = size + self.drift.growth * seconds, self.drift.turn * seconds
            return _quantised(y, x, size, angle)
        match MOTIONS[self.motion]:
            case "向左":
                x -= SPEED * seconds
            case "向右":
                x += SPEED * seconds
            case "向上":
                y -= SPEED * seconds
            case "向下":
                y += SPEED * seconds
            case "跳":
                phase = (seconds % JUMP_PERIOD) / JUMP_PERIOD
                y -= JUMP_HEIGHT * 4 * phase * (1 - phase)
            case "旋转":
                angle = TURN * seconds
            case "变大":
                size += GROWTH * seconds
            case "变小":
                size -= GROWTH * seconds
        return _quantised(y, x, size, angle)

    def states(self, times: Iterable[float]) -> list[State]:
        """Return the states at `times` in seconds."""
        return [self.state(t) for t in times]

    def frame_times(self, frames: int) -> list[float]:
        """Return the times in seconds of `frames` evenly spaced frames, first and last included."""
        return [self.duration * i / (frames - 1) for i in range(frames)]


@dataclass(frozen=True)
class HeldOut:
    """Pairs that never occur in training. They test whether the model combines concepts in new ways."""

    subject_motion: frozenset[tuple[int, int]]
    subject_scene: frozenset[tuple[int, int]]

    def contains(self, clip: Clip) -> bool:
        """Whether the clip shows a held-out pair."""
        return (clip.subject, clip.motion) in self.subject_motion or (clip.subject, clip.scene) in self.subject_scene


@dataclass(frozen=True)
class ClipOdds:
    """How often motions and sizes are sampled."""

    motions: Sequence[float] | None = None
    """Relative frequency of each of `MOTIONS`; None: uniform."""
    sizes: Sequence[float] | None = None
    """Relative frequency of each of `BASE_SIZES`; None: mostly the middle one."""
    drift_probability: float = 0.0
    """Probability of a movement without a name. Such clips show every subject at every size and angle."""


def sample_held_out(seed: int = 2022, fraction: float = 0.08) -> HeldOut:
    """Sample a fraction of the subject-motion and subject-scene pairs, without the README's panda on grass."""
    rng = np.random.default_rng(seed)

    def pick(columns: int, keep: set[tuple[int, int]]) -> frozenset[tuple[int, int]]:
        pairs = [(s, c) for s in range(len(SUBJECTS)) for c in range(columns) if (s, c) not in keep]
        chosen = rng.choice(len(pairs), size=round(fraction * len(SUBJECTS) * columns), replace=False)
        return frozenset(pairs[i] for i in chosen)

    motions = pick(len(MOTIONS), {(0, MOTIONS.index("向右"))})
    scenes = pick(len(SCENES), {(0, SCENES.index("草地"))})
    return HeldOut(motions, scenes)


def _start_range(motion: str, size: float) -> tuple[float, float, float, float]:
    """Return bounds (top, bottom, left, right) in cells of the centre at time 0 that keep the whole subject inside.

    They leave room for the longest clip. The backbone, which does not read the duration, generates the first frame: a
    place that suits only short clips would let subjects of long clips leave the frame.
    """
    low, high = size / 2, FIELD - size / 2
    top, bottom, left, right = low, high, low, high
    way = SPEED * max(DURATIONS)
    if motion == "向左":
        left += way
    elif motion == "向右":
        right -= way
    elif motion == "向上":
        top += way
    elif motion == "向下":
        bottom -= way
    elif motion == "跳":
        top += JUMP_HEIGHT
    elif motion == "变大":
        grown = size + GROWTH * max(DURATIONS)
        top = left = grown / 2
        bottom = right = FIELD - grown / 2
    return top, bottom, left, right


def _is_natural(bottom: float, kind: str, scene: str) -> bool:
    """Whether a subject with its lower edge at `bottom` cells looks natural: on the ground, or above it if it flies."""
    if scene == "夜空":
        return True
    return bottom <= 5 if kind in ("flyer", "sky") else bottom >= 6


def sample_clip(
    rng: np.random.Generator,
    held_out: HeldOut,
    duration: float | None = None,
    odds: ClipOdds | None = None,
) -> Clip:
    """Sample a clip for training: without held-out pairs, always inside the frame, centred on half cells.

    `duration` is in seconds; None: sampled too. Raises RequestError for odds that cannot be used.
    """
    odds = odds or ClipOdds()
    motions = None if odds.motions is None else to_probabilities("motion_odds", odds.motions, MOTIONS)
    sizes = SIZE_PROBABILITIES
    if odds.sizes is not None:
        sizes = to_probabilities("size_odds", odds.sizes, [str(size) for size in BASE_SIZES])
    drifts = odds.drift_probability > 0 and rng.random() < odds.drift_probability
    while True:
        if drifts:
            clip = _sample_drifting_clip(rng, duration, sizes)
            if clip is not None and not held_out.contains(clip):
                return clip
            continue
        subject = int(rng.integers(len(SUBJECTS)))
        scene = int(rng.integers(len(SCENES)))
        motion = int(rng.integers(len(MOTIONS)) if motions is None else rng.choice(len(MOTIONS), p=motions))
        clip = place_clip(rng, subject, scene, motion, duration, sizes)
        if not held_out.contains(clip):
            return clip


def to_probabilities(name: str, odds: Sequence[float], kinds: Sequence[str]) -> npt.NDArray[np.float64]:
    """Normalise the odds of `kinds` to a sum of 1. Raises RequestError; `name` is the option in its message."""
    values = np.array(odds, float)
    if len(values) != len(kinds) or not (values >= 0).all() or not 0 < values.sum() < np.inf:
        raise RequestError(
            f"{name} {list(odds)} 不可用：应为 {len(kinds)} 个不小于 0 且不全为 0 的数，依次对应 {'、'.join(kinds)}。",
            f"{name} {list(odds)} cannot be used. Give {len(kinds)} numbers, each 0 or more and not all 0, for "
            f"{', '.join(kinds)}.",
        )
    return values / values.sum()


def _sample_duration(rng: np.random.Generator) -> float:
    return float(rng.choice(DURATIONS, p=DURATION_PROBABILITIES))


def _sample_drifting_clip(
    rng: np.random.Generator, duration: float | None, sizes: npt.NDArray[np.float64]
) -> Clip | None:
    """Sample any subject at any place that moves, turns or grows, two of them at once.

    Returns None if the sampled movement leaves the frame or has a name.
    """
    seconds = _sample_duration(rng) if duration is None else duration
    drift = _sample_drift(rng, seconds)
    size = float(rng.choice(BASE_SIZES, p=sizes))
    if drift.growth:
        size = float(BASE_SIZES[0] if drift.growth > 0 else BASE_SIZES[-1])
    offset = (size / 2) % 1.0  # corners on the token grid, as for named movements
    y, x = (float(rng.integers(FIELD)) + offset for _ in range(2))
    clip = Clip(
        subject=int(rng.integers(len(SUBJECTS))),
        scene=int(rng.integers(len(SCENES))),
        motion=-1,
        variant=int(rng.integers(VARIANTS)),
        size=size,
        y=y,
        x=x,
        duration=seconds,
        drift=drift,
    )
    kinds = sum(change != 0 for change in (drift.down, drift.right, drift.growth, drift.turn))
    return clip if kinds >= 2 and all(map(_is_inside, clip.states((0.0, seconds)))) else None


_CHANGES: Final = ((GROWTH, 0.0), (GROWTH, 0.0), (-GROWTH, 0.0), (0.0, TURN), (0.0, TURN))
"""Growth and turn a second of named movements. Shrinking is listed once, since it is easier to learn."""


def _sample_drift(rng: np.random.Generator, duration: float) -> Drift:
    """Sample a movement: mostly a named change that travels one cell a keyframe, else several changes at any speed.

    Keyframes of the former have the tokens of growing or turning in place, without showing a held-out pair.
    """
    if rng.random() < 0.7:
        down, right = (4 / duration * float(rng.integers(-1, 2)) for _ in range(2))
        growth, turn = _CHANGES[rng.integers(len(_CHANGES))]
        return Drift(down, right, growth, turn)
    down, right = (SPEED * float(rng.choice((-1, -0.5, 0, 0.5, 1))) for _ in range(2))
    growth = GROWTH * float(rng.choice((-1, -0.5, 0, 0.5, 1)))
    turn = TURN * float(rng.choice((-1, -0.5, 0, 0, 0.5, 1)))
    return Drift(down, right, growth, turn)


def _is_inside(state: State) -> bool:
    low, high = state.size / 2, FIELD - state.size / 2
    grown = min(BASE_SIZES) <= state.size <= max(BASE_SIZES)
    return grown and low <= state.y <= high and low <= state.x <= high


def place_clip(
    rng: np.random.Generator,
    subject: int,
    scene: int,
    motion: int,
    duration: float | None = None,
    sizes: npt.NDArray[np.float64] = SIZE_PROBABILITIES,
) -> Clip:
    """Sample duration (if None), size, start and drawing of the scene for a given subject, scene and motion.

    `sizes` are the probabilities of `BASE_SIZES`. Growing and shrinking subjects have a fixed first size.
    """
    seconds = _sample_duration(rng) if duration is None else duration
    name = MOTIONS[motion]
    if name == "变大":
        size = 2.0
    elif name == "变小":
        size = 4.0
    else:
        size = float(rng.choice(BASE_SIZES, p=sizes))
    top, bottom, left, right = _start_range(name, size)
    # The subject's corner is on the token grid at time 0, so steps of whole cells repeat its tokens.
    offset = (size / 2) % 1.0
    ys = np.arange(np.ceil(top - offset), np.floor(bottom - offset) + 1) + offset
    xs = np.arange(np.ceil(left - offset), np.floor(right - offset) + 1) + offset
    natural = [y for y in ys if _is_natural(y + size / 2, SUBJECTS[subject].kind, SCENES[scene])]
    return Clip(
        subject=subject,
        scene=scene,
        motion=motion,
        variant=int(rng.integers(VARIANTS)),
        size=size,
        y=float(rng.choice(natural if natural else ys)),
        x=float(rng.choice(xs)),
        duration=seconds,
    )


def caption(rng: np.random.Generator, clip: Clip, partial: float = 0.06) -> str:
    """Sample a natural sentence for `clip`. With probability `partial` each, scene or verb is left out."""
    subject = SUBJECTS[clip.subject]
    scene = str(rng.choice(SCENE_PHRASES[SCENES[clip.scene]]))
    motion = "" if clip.drift else MOTIONS[clip.motion]
    verb = str(rng.choice(verb_phrases(subject, motion))) if motion else UNDIRECTED_VERB
    sized = motion not in ("变大", "变小")
    # A size other than the usual one always gets an adjective; the usual one gets a neutral adjective now and then.
    has_adjective = (sized and clip.size != 3) or rng.random() < 0.15
    adjective = str(rng.choice(SIZE_WORDS[int(clip.size) if sized else 3])) if has_adjective else ""
    name = str(rng.choice(subject.aliases)) if subject.aliases and rng.random() < 0.15 else subject.name
    words = {"q": subject.measure, "a": adjective, "n": name, "s": scene, "v": verb}
    roll = rng.random()
    if roll < partial:
        return "{q}{a}{n}{v}".format(**words)
    if roll < 2 * partial:
        return "{q}{a}{n}在{s}".format(**words)
    template = str(rng.choice(TEMPLATES, p=(0.35, 0.13, 0.13, 0.13, 0.13, 0.13)))
    return template.format(**words)


def describe_world() -> dict[str, list[str]]:
    """Return the names of subjects, scenes and motions, the content of `assets/mini/world.json`."""
    return {"subjects": [s.name for s in SUBJECTS], "scenes": list(SCENES), "motions": list(MOTIONS)}


def describe_held_out() -> dict[str, list[list[str]]]:
    """Return the names of held-out pairs, the content of `assets/mini/held_out.json`."""
    held_out = sample_held_out()
    return {
        "subject_motion": [[SUBJECTS[s].name, MOTIONS[m]] for s, m in sorted(held_out.subject_motion)],
        "subject_scene": [[SUBJECTS[s].name, SCENES[c]] for s, c in sorted(held_out.subject_scene)],
    }
