"""A request for a video, the checks of its values, and its stored form."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, fields
from typing import Any

from cogvideo.config import (
    DURATIONS,
    FRAME_COUNTS,
    MAX_DRAFTS,
    MAX_SEED,
    ModelConfig,
    SamplingOptions,
    TokenSampling,
    check_type,
)
from cogvideo.errors import RequestError
from cogvideo.messages import message
from cogvideo.token_frames import TokenFrames


@dataclass(frozen=True)
class VideoRequest:
    """A request for a video: prompt and options. `prompt.check_prompt` checks the prompt.

    `duration` is that of the whole video, in seconds. With `num_frames` it determines the frame rate. Raises
    RequestError for a value that is not allowed, or if `first_frame` or `initial_tokens` does not fit this video.
    """

    prompt: str
    seed: int = 0
    num_frames: int = 33
    duration: float = 4.0
    superres: bool = True
    sampling: SamplingOptions | None = None
    """None: the preset's options."""
    interpolation_seed: int | None = None
    """Seed of the frames between keyframes; None: `seed`."""
    num_drafts: int = 1
    """If more than 1: keyframes only, of this many videos with the seeds `seed`, `seed` + 1, ..., in one batch."""
    first_frame: TokenFrames | None = None
    """A given first frame. None: it is generated."""
    initial_tokens: TokenFrames | None = None
    """5, 9, 17 or 33 frames of this video that exist already. Only the missing frames are generated."""

    def __post_init__(self) -> None:
        self._check_types()
        for seed in (self.seed, self.interpolation_seed):
            if seed is not None and not 0 <= seed <= MAX_SEED:
                raise RequestError(*message("request.seed_out_of_range", seed=seed, max_seed=MAX_SEED))
        if self.num_frames not in FRAME_COUNTS:
            raise RequestError(*message("request.unsupported_frame_count", num_frames=self.num_frames))
        if self.duration not in DURATIONS:
            raise RequestError(*message("request.unsupported_duration", duration=self.duration))
        if not 1 <= self.num_drafts <= MAX_DRAFTS:
            raise RequestError(
                *message("request.drafts_out_of_range", num_drafts=self.num_drafts, max_drafts=MAX_DRAFTS)
            )
        self._check_initial_frames()

    def _check_types(self) -> None:
        """Check the types of all fields: requests from files and API clients may contain any type."""
        none = type(None)
        check_type("prompt", self.prompt, str)
        for name in ("seed", "num_frames", "num_drafts"):
            check_type(name, getattr(self, name), int)
        check_type("duration", self.duration, float)
        check_type("superres", self.superres, bool)
        check_type("interpolation_seed", self.interpolation_seed, int, none)
        check_type("sampling", self.sampling, SamplingOptions, none)
        for name in ("first_frame", "initial_tokens"):
            check_type(name, getattr(self, name), TokenFrames, none)

    def _check_initial_frames(self) -> None:
        first_fits = self.first_frame is None or self.first_frame.num_frames == 1
        tokens_fit = self.initial_tokens is None or (
            self.initial_tokens.num_frames in FRAME_COUNTS and self.initial_tokens.num_frames <= self.num_frames
        )
        if not first_fits or not tokens_fit or (self.initial_tokens is not None and self.num_drafts > 1):
            raise RequestError(*message("request.initial_frames_mismatch"))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the drafts; without drafts, the seed of the video."""
        return tuple((self.seed + number) % (MAX_SEED + 1) for number in range(self.num_drafts))

    @property
    def completed_rounds(self) -> int:
        """Rounds of interpolation that `initial_tokens` already contains, 0 to 3."""
        return FRAME_COUNTS.index(self.initial_tokens.num_frames) if self.initial_tokens else 0

    @property
    def rounds(self) -> int:
        """Rounds of interpolation of the whole video: 0 for 5 frames, 3 for 33."""
        return FRAME_COUNTS.index(self.num_frames)

    @property
    def frames_per_second(self) -> float:
        return (self.num_frames - 1) / self.duration


def tokens_per_stage(model: ModelConfig, request: VideoRequest) -> dict[str, int]:
    """Return the number of tokens that each stage generates for `request`, in the order of the stages.

    Given frames do not count.
    """
    frame, fine = model.tokens_per_frame, model.fine_grid[0] * model.fine_grid[1]
    missing = FRAME_COUNTS[0] - (request.first_frame is not None)  # keyframes
    if request.num_drafts > 1:
        return {"drafts": request.num_drafts * missing * frame, "interpolate": 0, "superres": 0}
    between = request.num_frames - (request.initial_tokens.num_frames if request.initial_tokens else FRAME_COUNTS[0])
    return {
        "keyframes": 0 if request.initial_tokens else missing * frame,
        "interpolate": between * frame,
        "superres": request.num_frames * fine if request.superres else 0,
    }


def new_seed() -> int:
    """Return a random seed of 32 bits."""
    return secrets.randbits(32)


_STORED_NAMES = {
    "num_frames": "frames",
    "duration": "seconds",
    "num_drafts": "drafts",
    "interpolation_seed": "between_seed",
    "initial_tokens": "clip",
    "guidance_scale": "guidance",
    "interpolation_guidance_scale": "between_guidance",
    "text_attention_bias": "text_boost",
    "best_of": "candidates",
    "within_cluster_temperature": "inner_temperature",
}
"""Current name -> name in version 1 of the stored format: database rows, video comments, keyframe and file names."""
_CURRENT_NAMES = {stored: name for name, stored in _STORED_NAMES.items()}
REQUEST_NAMES = frozenset(field.name for field in fields(VideoRequest)) | _CURRENT_NAMES.keys()
"""Keys of a request, among the other keys of a video's comment."""


def request_to_dict(request: VideoRequest) -> dict[str, Any]:
    """Convert a request to version 1 of the stored format: JSON values under the names of the first release."""
    stored: dict[str, Any] = _renamed(asdict(request), _STORED_NAMES)
    return stored


def sampling_to_dict(options: SamplingOptions) -> dict[str, Any]:
    """Convert sampling options to version 1 of the stored format, as `request_to_dict` does."""
    stored: dict[str, Any] = _renamed(asdict(options), _STORED_NAMES)
    return stored


def request_from_dict(data: dict[str, Any]) -> VideoRequest:
    """Convert a stored request, under its stored or its current names. Raises RequestError if a value is invalid."""
    current = _renamed(data, _CURRENT_NAMES)
    sampling = current.get("sampling")
    given = {name: TokenFrames(**current[name]) for name in ("first_frame", "initial_tokens") if current.get(name)}
    return VideoRequest(**{**current, **given, "sampling": _sampling(sampling) if sampling else None})


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """Replace the keys of nested dictionaries. Values are not copied."""
    if not isinstance(value, dict):
        return value
    return {names.get(name, name): _renamed(item, names) for name, item in value.items()}


def _sampling(data: dict[str, Any]) -> SamplingOptions:
    nested = {name: TokenSampling(**value) for name, value in data.items() if isinstance(value, dict)}
    return SamplingOptions(**{**data, **nested})
