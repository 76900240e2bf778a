"""How fast tokens come, per stage, and what that says about the time left. No torch.

The tokens of a video follow from the geometry alone, so the only thing to measure is tokens a second.
"""

from __future__ import annotations

from contextlib import suppress

from cogvideo.config import Preset
from cogvideo.errors import CapacityError
from cogvideo.jobs.store import Store
from cogvideo.request import VideoRequest, tokens_per_stage

MEANINGFUL = 16
"""Tokens of a stage after which its measured speed counts."""


class ThroughputEstimator:
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


class ThroughputStore:
    """Tokens a second per stage, in the store's settings."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def pace(self, model: str, how: str) -> ThroughputEstimator:
        """What is known of a model that computes in one way (`Pipeline.how`)."""
        prefix = f"speed:{model}:{how}:"
        kept = self._store.settings(prefix)
        return ThroughputEstimator({name.removeprefix(prefix): float(value) for name, value in kept.items()})

    def keep(self, model: str, how: str, pace: ThroughputEstimator) -> None:
        """What a run has measured. A full disk takes nothing: it is measured again next time."""
        with suppress(CapacityError):
            self._store.keep(f"how:{model}", how)
            for stage, speed in pace.speeds().items():
                self._store.keep(f"speed:{model}:{how}:{stage}", repr(speed))

    def estimate(self, preset: Preset, request: VideoRequest, memory: str | None) -> float | None:
        """Seconds that `request` would take, as far as speeds were measured. `memory`: as in `Jobs.submit`."""
        how = self._store.settings("how:").get(f"how:{preset.name}", "")
        if memory is not None:
            how = f"{how.partition('-')[0]}-{memory}"  # the same device, held in another way
        return self.pace(preset.name, how).seconds_left(tokens_per_stage(preset.model, request), 0)
