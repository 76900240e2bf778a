"""Throughput per stage and the time left that follows from it.

The number of tokens of a video follows from its geometry, so tokens per second are all that needs to be measured.
"""

from __future__ import annotations

from contextlib import suppress

from cogvideo.config import Preset
from cogvideo.errors import CapacityError
from cogvideo.jobs.store import Store
from cogvideo.request import VideoRequest, tokens_per_stage

MIN_TOKENS = 16
"""Tokens of a stage before its measured throughput is used."""


class ThroughputEstimator:
    """Tokens per second and stage: measurements of this run, or else of earlier runs (`known`)."""

    def __init__(self, known: dict[str, float]) -> None:
        self._known = dict(known)
        self._stage: str | None = None
        self._last = (0, 0.0)  # tokens done, at which second
        self._tokens: dict[str, int] = {}
        self._seconds: dict[str, float] = {}

    def advance(self, stage: str, done: int, now: float) -> None:
        """Add a measurement: `done` tokens of the whole video exist at second `now` of a monotonic clock."""
        if stage == self._stage:
            self._tokens[stage] = self._tokens.get(stage, 0) + done - self._last[0]
            self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last[1]
        self._stage, self._last = stage, (done, now)

    def speeds(self) -> dict[str, float]:
        """Return tokens per second of all measured stages."""
        measured = {
            stage: tokens / self._seconds[stage]
            for stage, tokens in self._tokens.items()
            if tokens >= MIN_TOKENS and self._seconds[stage] > 0
        }
        return {**self._known, **measured}

    def seconds_left(self, plan: dict[str, int], done: int) -> float | None:
        """Return the seconds until all tokens of `plan` (tokens per stage) exist.

        Returns None if a remaining stage was never measured.
        """
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
    """Measured throughput in the settings of the job database, by model and `Pipeline.profile_key`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def estimator(self, model: str, profile_key: str) -> ThroughputEstimator:
        """Return an estimator with the measurements of earlier runs."""
        prefix = f"speed:{model}:{profile_key}:"
        stored = self._store.settings(prefix)
        return ThroughputEstimator({name.removeprefix(prefix): float(value) for name, value in stored.items()})

    def save(self, model: str, profile_key: str, estimator: ThroughputEstimator) -> None:
        """Store the measurements of a run. On a full disk they are dropped."""
        with suppress(CapacityError):
            self._store.set_setting(f"how:{model}", profile_key)
            for stage, speed in estimator.speeds().items():
                self._store.set_setting(f"speed:{model}:{profile_key}:{stage}", repr(speed))

    def estimate(self, preset: Preset, request: VideoRequest, memory: str | None) -> float | None:
        """Return the seconds that `request` would take under a memory preset (None: the last one used).

        Returns None if a stage was never measured.
        """
        profile_key = self._store.settings("how:").get(f"how:{preset.name}", "")
        if memory is not None:
            profile_key = f"{profile_key.partition('-')[0]}-{memory}"  # same device, other preset
        estimator = self.estimator(preset.name, profile_key)
        return estimator.seconds_left(tokens_per_stage(preset.model, request), 0)
