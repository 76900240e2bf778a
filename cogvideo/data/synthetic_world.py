"""The small world that `mini` knows: who does what where, how it moves, and how a person would say it. No torch.

In: a random generator. Out: a `Clip` (subject, scene, motion, size, place) with a caption, and `Clip.state(seconds)`,
the subject's place, size and angle at any moment. `synthetic_render.py` turns states into pixels.

Lengths are in cells: one cell is one token's patch, and the field is `FIELD` x `FIELD` cells. Speeds are one cell a
second, so the five frames of a four-second clip stand one cell apart and those of a two-second clip half a cell: the
frame-rate token means something.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cogvideo.data.synthetic_vocabulary import (
    _DIRECTIONS,
    _VERBS,
    MOTIONS,
    SCENE_PHRASES,
    SCENES,
    SIZE_WORDS,
    SUBJECTS,
    TEMPLATES,
    UNDIRECTED_VERB,
    Subject,
)
from cogvideo.errors import RequestError

FIELD: Final = 8
"""Cells along each side of a frame."""

DURATIONS: Final = (4.0, 2.0, 1.0, 0.5)
"""Seconds of a five-frame window that keyframes are trained on."""

_TRAVEL: Final = {
    "animal": ("跑", "走", "移动"),
    "flyer": ("飞", "移动"),
    "vehicle": ("开", "行驶", "移动"),
    "ball": ("滚", "滚动", "移动"),
    "fruit": ("滚", "移动"),
    "sky": ("移动", "飞"),
}

BASE_SIZES: Final = (2, 3, 4)
"""Sizes in cells of a subject that keeps its size."""
SIZE_SHARES: Final = np.array((0.15, 0.7, 0.15))
"""How often each size comes where nothing else is said."""

JUMP_HEIGHT: Final = 2.0
JUMP_PERIOD: Final = 2.0
SPEED: Final = 1.0
"""Cells a second."""
GROWTH: Final = 0.5
"""Cells a second that the side of a growing subject gains."""
TURN: Final = 90.0
"""Degrees a second, clockwise."""
FINEST_TURN: Final = 360 / 64
"""Degrees, of which every angle is a multiple: what a subject's edge has to turn by to move about a pixel."""


@dataclass(frozen=True)
class State:
    """Where the subject is: centre (y, x) and side in cells, angle in degrees clockwise."""

    y: float
    x: float
    size: float
    angle: float


def _as_drawn(y: float, x: float, size: float, angle: float) -> State:
    """The state with the place in whole pixels of a small frame and an angle that makes a difference there."""
    turns = round(angle / FINEST_TURN) * FINEST_TURN
    return State(round(y * FIELD) / FIELD, round(x * FIELD) / FIELD, size, turns % 360.0)


@dataclass(frozen=True)
class Drift:
    """A movement without a name of its own: what it changes every second."""

    down: float
    right: float
    growth: float
    turn: float


@dataclass(frozen=True)
class Clip:
    """One clip of the world. `y` and `x` are the subject's centre at time 0, in cells from the top left corner."""

    subject: int
    scene: int
    motion: int
    variant: int
    """Which drawing of the scene."""
    size: float
    y: float
    x: float
    duration: float
    """Seconds that the five keyframes span."""
    drift: Drift | None = None
    """How the subject moves instead of `motion`, which is -1 then."""

    def state(self, seconds: float) -> State:
        """The subject `seconds` after the first frame; places are whole small-frame pixels, eighths of a cell, and
        angles are multiples of `FINEST_TURN`.
        """
        y, x, size, angle = self.y, self.x, self.size, 0.0
        if self.drift is not None:
            y, x = y + self.drift.down * seconds, x + self.drift.right * seconds
            size, angle = size + self.drift.growth * seconds, self.drift.turn * seconds
            return _as_drawn(y, x, size, angle)
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
        return _as_drawn(y, x, size, angle)

    def states(self, times: Iterable[float]) -> list[State]:
        return [self.state(t) for t in times]

    def frame_times(self, frames: int) -> list[float]:
        """Times in seconds of `frames` frames, first and last included."""
        return [self.duration * i / (frames - 1) for i in range(frames)]


@dataclass(frozen=True)
class HeldOut:
    """Pairs that training never shows, to see whether the model combines what it knows."""

    subject_motion: frozenset[tuple[int, int]]
    subject_scene: frozenset[tuple[int, int]]

    def contains(self, clip: Clip) -> bool:
        return (clip.subject, clip.motion) in self.subject_motion or (clip.subject, clip.scene) in self.subject_scene


def sample_held_out(seed: int = 2022, share: float = 0.08) -> HeldOut:
    """Draw `share` of the subject-motion and subject-scene pairs; the panda on grass that the README shows stays in."""
    rng = np.random.default_rng(seed)

    def pick(columns: int, keep: set[tuple[int, int]]) -> frozenset[tuple[int, int]]:
        pairs = [(s, c) for s in range(len(SUBJECTS)) for c in range(columns) if (s, c) not in keep]
        chosen = rng.choice(len(pairs), size=round(share * len(SUBJECTS) * columns), replace=False)
        return frozenset(pairs[i] for i in chosen)

    motions = pick(len(MOTIONS), {(0, MOTIONS.index("向右"))})
    scenes = pick(len(SCENES), {(0, SCENES.index("草地"))})
    return HeldOut(motions, scenes)


def _start_range(motion: str, size: float) -> tuple[float, float, float, float]:
    """Bounds (top, bottom, left, right) in cells of the centre at time 0 that keep the whole subject inside.

    There is room for the longest clip whatever the clip's own duration: the first frame is drawn by the backbone, which
    is not told the duration, so places that suit short clips only would let long ones run out of the picture.
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


def _stands_well(bottom: float, kind: str, scene: str) -> bool:
    """Whether a subject that reaches down to `bottom` cells looks at home: feet on the ground, wings above."""
    if scene == "夜空":
        return True
    return bottom <= 5 if kind in ("flyer", "sky") else bottom >= 6


def sample_clip(
    rng: np.random.Generator,
    held_out: HeldOut,
    duration: float | None = None,
    variants: int = 2,
    odds: Sequence[float] | None = None,
    drifting: float = 0.0,
    size_odds: Sequence[float] | None = None,
) -> Clip:
    """Draw a clip that training may show: never a held-out pair, always inside the frame, centred on half cells.

    `odds`: how often each motion comes, beside the others; None: all alike. `drifting`: share of clips that move
    freely, which show every subject at every size and angle without a word for it. `size_odds`: how often each of
    `BASE_SIZES` comes; None: mostly the middle one, as in what a person asks for. Raises RequestError.
    """
    shares = None if odds is None else to_shares("motion_odds", odds, MOTIONS)
    sizes = SIZE_SHARES if size_odds is None else to_shares("size_odds", size_odds, [str(size) for size in BASE_SIZES])
    drifts = drifting > 0 and rng.random() < drifting
    while True:
        if drifts:
            clip = _drifting_clip(rng, duration, variants, sizes)
            if clip is not None and not held_out.contains(clip):
                return clip
            continue
        subject = int(rng.integers(len(SUBJECTS)))
        scene = int(rng.integers(len(SCENES)))
        motion = int(rng.integers(len(MOTIONS)) if shares is None else rng.choice(len(MOTIONS), p=shares))
        clip = place_clip(rng, subject, scene, motion, duration, variants, sizes)
        if not held_out.contains(clip):
            return clip


def to_shares(name: str, odds: Sequence[float], kinds: Sequence[str]) -> npt.NDArray[np.float64]:
    """Odds of every kind -> shares that sum to 1. Raises RequestError, which calls them `name`."""
    values = np.array(odds, float)
    if len(values) != len(kinds) or not (values >= 0).all() or not 0 < values.sum() < np.inf:
        raise RequestError(
            f"{name} {list(odds)} 不可用：应为 {len(kinds)} 个不小于 0 的数，且不全为 0，依次对应 {'、'.join(kinds)}。",
            f"{name} {list(odds)} cannot be used: give {len(kinds)} numbers, 0 or more and not all 0, one for each of "
            f"{', '.join(kinds)}.",
        )
    return values / values.sum()


def _draw_duration(rng: np.random.Generator) -> float:
    return float(rng.choice(DURATIONS, p=(0.5, 0.25, 0.15, 0.1)))


def _drifting_clip(
    rng: np.random.Generator, duration: float | None, variants: int, sizes: npt.NDArray[np.float64]
) -> Clip | None:
    """Anybody anywhere, moving and turning or growing at once; None where the draw would leave the frame, or is one of
    the named movements.
    """
    seconds = _draw_duration(rng) if duration is None else duration
    drift = _draw_drift(rng, seconds)
    size = float(rng.choice(BASE_SIZES, p=sizes))
    if drift.growth:
        size = float(BASE_SIZES[0] if drift.growth > 0 else BASE_SIZES[-1])
    offset = (size / 2) % 1.0  # corners on the token grid, as of the named movements
    y, x = (float(rng.integers(FIELD)) + offset for _ in range(2))
    clip = Clip(
        subject=int(rng.integers(len(SUBJECTS))),
        scene=int(rng.integers(len(SCENES))),
        motion=-1,
        variant=int(rng.integers(variants)),
        size=size,
        y=y,
        x=x,
        duration=seconds,
        drift=drift,
    )
    kinds = sum(change != 0 for change in (drift.down, drift.right, drift.growth, drift.turn))
    return clip if kinds >= 2 and all(map(_is_inside, clip.states((0.0, seconds)))) else None


_CHANGES: Final = ((GROWTH, 0.0), (GROWTH, 0.0), (-GROWTH, 0.0), (0.0, TURN), (0.0, TURN))
"""Growth and turn a second of the movements that have a name and change more than the place; shrinking is easier."""


def _draw_drift(rng: np.random.Generator, duration: float) -> Drift:
    """Mostly a named change on a way of one cell a keyframe: its keyframes show the subject as growing or turning in
    place would, which nobody may be shown of a held-out pair. Else several changes at once, at any speed.
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
    variants: int = 2,
    sizes: npt.NDArray[np.float64] = SIZE_SHARES,
) -> Clip:
    """Draw duration (where None), size, start and scene drawing for a given subject, scene and motion.

    `sizes`: how often each of `BASE_SIZES` comes, as shares of 1; who grows or shrinks begins with the size for that.
    """
    seconds = _draw_duration(rng) if duration is None else duration
    name = MOTIONS[motion]
    if name == "变大":
        size = 2.0
    elif name == "变小":
        size = 4.0
    else:
        size = float(rng.choice(BASE_SIZES, p=sizes))
    top, bottom, left, right = _start_range(name, size)
    # The subject's corner sits on the token grid at time 0, so that steps of whole cells repeat its tokens.
    offset = (size / 2) % 1.0
    ys = np.arange(np.ceil(top - offset), np.floor(bottom - offset) + 1) + offset
    xs = np.arange(np.ceil(left - offset), np.floor(right - offset) + 1) + offset
    natural = [y for y in ys if _stands_well(y + size / 2, SUBJECTS[subject].kind, SCENES[scene])]
    return Clip(
        subject=subject,
        scene=scene,
        motion=motion,
        variant=int(rng.integers(variants)),
        size=size,
        y=float(rng.choice(natural if natural else ys)),
        x=float(rng.choice(xs)),
        duration=seconds,
    )


def verb_phrases(subject: Subject, motion: str) -> tuple[str, ...]:
    """Natural ways to say what `subject` does, such as 向右跑."""
    if motion in _DIRECTIONS:
        ways = [d + t for d in _DIRECTIONS[motion] for t in _TRAVEL[subject.kind]]
        if motion == "向上":
            ways += ["上升"]
        if motion == "向下":
            ways += ["下降", "落下来"]
        return tuple(ways)
    return _VERBS[motion]


def caption(rng: np.random.Generator, clip: Clip, partial: float = 0.06) -> str:
    """A natural sentence for `clip`. With probability `partial` each, scene or verb is left unsaid."""
    subject = SUBJECTS[clip.subject]
    scene = str(rng.choice(SCENE_PHRASES[SCENES[clip.scene]]))
    motion = "" if clip.drift else MOTIONS[clip.motion]
    verb = str(rng.choice(verb_phrases(subject, motion))) if motion else UNDIRECTED_VERB
    sized = motion not in ("变大", "变小")
    # A size that differs from the usual one is said; the usual one gets an idle adjective now and then.
    said = (sized and clip.size != 3) or rng.random() < 0.15
    adjective = str(rng.choice(SIZE_WORDS[int(clip.size) if sized else 3])) if said else ""
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
    """Names of what the world holds, for `assets/mini/world.json`."""
    return {"subjects": [s.name for s in SUBJECTS], "scenes": list(SCENES), "motions": list(MOTIONS)}


def describe_held_out() -> dict[str, list[list[str]]]:
    """Names of the pairs that training never shows, for `assets/mini/held_out.json`."""
    held_out = sample_held_out()
    return {
        "subject_motion": [[SUBJECTS[s].name, MOTIONS[m]] for s, m in sorted(held_out.subject_motion)],
        "subject_scene": [[SUBJECTS[s].name, SCENES[c]] for s, c in sorted(held_out.subject_scene)],
    }
