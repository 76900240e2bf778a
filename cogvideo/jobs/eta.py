"""How fast tokens come, per stage, and what that says about the time left. No torch.

The tokens of a video follow from the geometry alone, so the only thing to measure is tokens a second.
"""

from __future__ import annotations

from cogvideo.config import CLIP_FRAMES, ModelConfig, VideoRequest

MEANINGFUL = 16
"""Tokens of a stage after which its measured speed counts."""


def tokens_per_stage(model: ModelConfig, request: VideoRequest) -> dict[str, int]:
    """Tokens that each stage draws for `request`, in the order in which the stages run; given ones are not drawn."""
    frame, fine = model.tokens_per_frame, model.fine_grid[0] * model.fine_grid[1]
    missing = CLIP_FRAMES[0] - (request.first_frame is not None)  # keyframes
    if request.drafts > 1:
        return {"drafts": request.drafts * missing * frame, "interpolate": 0, "superres": 0}
    between = request.frames - (request.clip.frames if request.clip else CLIP_FRAMES[0])
    return {
        "keyframes": 0 if request.clip else missing * frame,
        "interpolate": between * frame,
        "superres": request.frames * fine if request.superres else 0,
    }


class Pace:
    """Speeds of one run on top of the speeds known from earlier runs (tokens a second per stage)."""

    def __init__(self, known: dict[str, float]) -> None:
        self.known = dict(known)
        self._stage: str | None = None
        self._last = (0, 0.0)  # tokens done, at which second
        self._drawn: dict[str, int] = {}
        self._spent: dict[str, float] = {}

    def advance(self, stage: str, done: int, now: float) -> None:
        """`done` tokens of the whole video are drawn at second `now` (any clock that only moves forward)."""
        if stage == self._stage:
            self._drawn[stage] = self._drawn.get(stage, 0) + done - self._last[0]
            self._spent[stage] = self._spent.get(stage, 0.0) + now - self._last[1]
        self._stage, self._last = stage, (done, now)

    def speeds(self) -> dict[str, float]:
        """Tokens a second of every stage that is known, this run's own measurements first."""
        measured = {
            stage: drawn / self._spent[stage]
            for stage, drawn in self._drawn.items()
            if drawn >= MEANINGFUL and self._spent[stage] > 0
        }
        return {**self.known, **measured}

    def seconds_left(self, plan: dict[str, int], done: int) -> float | None:
        """Seconds until all tokens of `plan` are drawn; None while a stage to come has never been measured."""
        speeds = self.speeds()
        seconds = 0.0
        for stage, tokens in plan.items():
            missing = max(0, tokens - done)
            done = max(0, done - tokens)
            if missing and stage not in speeds:
                return None
            seconds += missing / speeds[stage] if missing else 0.0
        return seconds
