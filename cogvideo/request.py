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
from cogvideo.token_frames import TokenFrames


@dataclass(frozen=True)
class VideoRequest:
    """One wish: a prompt and how to draw it. Its numbers are checked here, its prompt by `text.check_prompt`.

    `seconds` is the length of the whole clip; with `frames` it fixes the frame rate. Raises
    RequestError for a seed, a number of frames or a length that does not exist, and where `first_frame` is not one
    frame or `clip` is not the beginning of this video.
    """

    prompt: str
    seed: int = 0
    num_frames: int = 33
    duration: float = 4.0
    superres: bool = True
    sampling: SamplingOptions | None = None
    """None: the preset's own options."""
    interpolation_seed: int | None = None
    """Seed of the frames between keyframes; None: `seed`."""
    num_drafts: int = 1
    """More than 1: only keyframes, of so many videos with the seeds `seed`, `seed` + 1, ..., in one batch."""
    first_frame: TokenFrames | None = None
    """The first frame, where it is not to be drawn."""
    initial_tokens: TokenFrames | None = None
    """5, 9, 17 or 33 frames of this very video that were drawn before: only what is missing is drawn."""

    def __post_init__(self) -> None:
        self._check_kinds()
        for seed in (self.seed, self.interpolation_seed):
            if seed is not None and not 0 <= seed <= MAX_SEED:
                raise RequestError(
                    f"种子 {seed} 超出范围：请输入 0 到 {MAX_SEED} 之间的整数。",
                    f"Seed {seed} is out of range: give a whole number from 0 to {MAX_SEED}.",
                )
        if self.num_frames not in FRAME_COUNTS:
            raise RequestError(
                f"不支持 {self.num_frames} 帧：请选择 5、9、17 或 33 帧。",
                f"{self.num_frames} frames do not exist: choose 5, 9, 17 or 33.",
            )
        if self.duration not in DURATIONS:
            raise RequestError(
                f"不支持 {self.duration} 秒：请选择 4、2、1 或 0.5 秒。",
                f"{self.duration} seconds do not exist: choose 4, 2, 1 or 0.5.",
            )
        if not 1 <= self.num_drafts <= MAX_DRAFTS:
            raise RequestError(
                f"草稿数 {self.num_drafts} 超出范围：请输入 1 到 {MAX_DRAFTS}。",
                f"{self.num_drafts} drafts are out of range: give a number from 1 to {MAX_DRAFTS}.",
            )
        self._check_start()

    def _check_kinds(self) -> None:
        """What comes from files and programs may be anything."""
        nothing = type(None)
        check_type("prompt", self.prompt, str)
        for name in ("seed", "num_frames", "num_drafts"):
            check_type(name, getattr(self, name), int)
        check_type("duration", self.duration, float)
        check_type("superres", self.superres, bool)
        check_type("interpolation_seed", self.interpolation_seed, int, nothing)
        check_type("sampling", self.sampling, SamplingOptions, nothing)
        for name in ("first_frame", "initial_tokens"):
            check_type(name, getattr(self, name), TokenFrames, nothing)

    def _check_start(self) -> None:
        first = self.first_frame is None or self.first_frame.num_frames == 1
        clip = self.initial_tokens is None or (
            self.initial_tokens.num_frames in FRAME_COUNTS and self.initial_tokens.num_frames <= self.num_frames
        )
        if not first or not clip or (self.initial_tokens is not None and self.num_drafts > 1):
            raise RequestError(
                "起始画面与所选帧数不符：起始画面应为一帧，续画的片段应为 5、9、17 或 33 帧且不多于所选帧数。",
                "The frames to start from do not fit: a first frame is one frame, and a clip to go on with has 5, 9, "
                "17 or 33 frames and no more than are asked for.",
            )

    @property
    def seeds(self) -> tuple[int, ...]:
        """One seed for each video of a draft; of anything else its own."""
        return tuple((self.seed + number) % (MAX_SEED + 1) for number in range(self.num_drafts))

    @property
    def completed_rounds(self) -> int:
        """Rounds of interpolation that `clip` has behind it."""
        return FRAME_COUNTS.index(self.initial_tokens.num_frames) if self.initial_tokens else 0

    @property
    def rounds(self) -> int:
        """Rounds of interpolation: 0 for 5 frames, 3 for 33."""
        return FRAME_COUNTS.index(self.num_frames)

    @property
    def frames_per_second(self) -> float:
        return (self.num_frames - 1) / self.duration


def tokens_per_stage(model: ModelConfig, request: VideoRequest) -> dict[str, int]:
    """Tokens that each stage draws for `request`, in the order in which the stages run; given ones are not drawn."""
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
    """A seed of 32 bits."""
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
"""Names in stored requests -> version 1 of the format: database rows, video comments, keyframe files, file names."""
_CURRENT_NAMES = {stored: name for name, stored in _STORED_NAMES.items()}
REQUEST_NAMES = frozenset(field.name for field in fields(VideoRequest)) | _CURRENT_NAMES.keys()
"""Keys of a request among the other keys of a video's comment."""


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
