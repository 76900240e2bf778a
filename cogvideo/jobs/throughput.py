"""Measured speeds, kept for each model and each way to hold it: after a restart the first estimate is there too."""

from __future__ import annotations

from contextlib import suppress

from cogvideo.config import Preset, VideoRequest
from cogvideo.errors import CapacityError
from cogvideo.jobs.eta import Pace, tokens_per_stage
from cogvideo.jobs.store import Store


class Speeds:
    """Tokens a second per stage, in the store's settings."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def pace(self, model: str, how: str) -> Pace:
        """What is known of a model that computes in one way (`Pipeline.how`)."""
        prefix = f"speed:{model}:{how}:"
        kept = self._store.settings(prefix)
        return Pace({name.removeprefix(prefix): float(value) for name, value in kept.items()})

    def keep(self, model: str, how: str, pace: Pace) -> None:
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
