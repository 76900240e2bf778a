"""Result of one benchmarked stage, with the figures that follow from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StageResult:
    """Figures of one stage, or one round of it, for a whole video."""

    stage: str
    rows: int
    """Rows of a forward pass."""
    steps: int
    """Forward passes of the stage."""
    measured_steps: int
    """Steps that were timed, spread evenly over the stage; times are extrapolated to `steps`."""
    tokens: int
    seconds: float
    floor_seconds: float
    peak_mebibytes: float
    """GPU: peak of the stage. CPU: peak of the process so far."""
    calls_per_step: int
    """CPU: calls of PyTorch operators in one step. GPU: kernel launches."""
    syncs_per_step: int
    """Device synchronizations in one step."""
    cpu_seconds: float = 0.0
    """CPU time of the process over all threads; on a busy machine more reliable than the clock."""
    release_seconds: float | None = None
    release_cpu_seconds: float | None = None
    release_measured_steps: int | None = None

    @property
    def milliseconds_per_step(self) -> float:
        return self.seconds / self.steps * 1000

    @property
    def fraction_of_floor(self) -> float:
        return self.floor_seconds / self.seconds

    @property
    def times_release(self) -> float | None:
        return None if self.release_seconds is None else self.release_seconds / self.seconds

    @property
    def times_release_cpu(self) -> float | None:
        return None if self.release_cpu_seconds is None else self.release_cpu_seconds / self.cpu_seconds

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "milliseconds_per_step": self.milliseconds_per_step,
            "tokens_per_second": self.tokens / self.seconds,
            "fraction_of_floor": self.fraction_of_floor,
            "of_floor": self.fraction_of_floor,  # its name in version 0.1
            "times_release": self.times_release,
            "times_release_cpu": self.times_release_cpu,
        }
