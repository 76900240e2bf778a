"""Sizes, sampling options and presets as frozen data, and the request, checked at the door. No torch.

Whatever differs between the model that ships (`mini`) and the published one (`cogvideo`) is a row in
`PRESETS`; no other file knows which of the two it runs.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass
from typing import Any

from cogvideo.config import (
    CLIP_FRAMES,
    CLIP_SECONDS,
    MAX_DRAFTS,
    MAX_SEED,
    ModelConfig,
    SamplingOptions,
    TokenSampling,
    demand,
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
    frames: int = 33
    seconds: float = 4.0
    superres: bool = True
    sampling: SamplingOptions | None = None
    """None: the preset's own options."""
    between_seed: int | None = None
    """Seed of the frames between keyframes; None: `seed`."""
    drafts: int = 1
    """More than 1: only keyframes, of so many videos with the seeds `seed`, `seed` + 1, ..., in one batch."""
    first_frame: TokenFrames | None = None
    """The first frame, where it is not to be drawn."""
    clip: TokenFrames | None = None
    """5, 9, 17 or 33 frames of this very video that were drawn before: only what is missing is drawn."""

    def __post_init__(self) -> None:
        self._check_kinds()
        for seed in (self.seed, self.between_seed):
            if seed is not None and not 0 <= seed <= MAX_SEED:
                raise RequestError(
                    f"种子 {seed} 超出范围：请输入 0 到 {MAX_SEED} 之间的整数。",
                    f"Seed {seed} is out of range: give a whole number from 0 to {MAX_SEED}.",
                )
        if self.frames not in CLIP_FRAMES:
            raise RequestError(
                f"不支持 {self.frames} 帧：请选择 5、9、17 或 33 帧。",
                f"{self.frames} frames do not exist: choose 5, 9, 17 or 33.",
            )
        if self.seconds not in CLIP_SECONDS:
            raise RequestError(
                f"不支持 {self.seconds} 秒：请选择 4、2、1 或 0.5 秒。",
                f"{self.seconds} seconds do not exist: choose 4, 2, 1 or 0.5.",
            )
        if not 1 <= self.drafts <= MAX_DRAFTS:
            raise RequestError(
                f"草稿数 {self.drafts} 超出范围：请输入 1 到 {MAX_DRAFTS}。",
                f"{self.drafts} drafts are out of range: give a number from 1 to {MAX_DRAFTS}.",
            )
        self._check_start()

    def _check_kinds(self) -> None:
        """What comes from files and programs may be anything."""
        nothing = type(None)
        demand("prompt", self.prompt, str)
        for name in ("seed", "frames", "drafts"):
            demand(name, getattr(self, name), int)
        demand("seconds", self.seconds, float)
        demand("superres", self.superres, bool)
        demand("between_seed", self.between_seed, int, nothing)
        demand("sampling", self.sampling, SamplingOptions, nothing)
        for name in ("first_frame", "clip"):
            demand(name, getattr(self, name), TokenFrames, nothing)

    def _check_start(self) -> None:
        first = self.first_frame is None or self.first_frame.frames == 1
        clip = self.clip is None or (self.clip.frames in CLIP_FRAMES and self.clip.frames <= self.frames)
        if not first or not clip or (self.clip is not None and self.drafts > 1):
            raise RequestError(
                "起始画面与所选帧数不符：起始画面应为一帧，续画的片段应为 5、9、17 或 33 帧且不多于所选帧数。",
                "The frames to start from do not fit: a first frame is one frame, and a clip to go on with has 5, 9, "
                "17 or 33 frames and no more than are asked for.",
            )

    @property
    def wish(self) -> tuple[str, float]:
        """What the texts of its keyframes are made of: prompt and seconds."""
        return self.prompt, self.seconds

    @property
    def seeds(self) -> tuple[int, ...]:
        """One seed for each video of a draft; of anything else its own."""
        return tuple((self.seed + number) % (MAX_SEED + 1) for number in range(self.drafts))

    @property
    def started_rounds(self) -> int:
        """Rounds of interpolation that `clip` has behind it."""
        return CLIP_FRAMES.index(self.clip.frames) if self.clip else 0

    @property
    def rounds(self) -> int:
        """Rounds of interpolation: 0 for 5 frames, 3 for 33."""
        return CLIP_FRAMES.index(self.frames)

    @property
    def frames_per_second(self) -> float:
        return (self.frames - 1) / self.seconds


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


def new_seed() -> int:
    """A seed of 32 bits."""
    return secrets.randbits(32)


def request_to_dict(request: VideoRequest) -> dict[str, Any]:
    return asdict(request)


def request_from_dict(data: dict[str, Any]) -> VideoRequest:
    """The inverse of `request_to_dict`. Raises RequestError where the values are out of range."""
    sampling = data.get("sampling")
    given = {name: TokenFrames(**data[name]) for name in ("first_frame", "clip") if data.get(name)}
    return VideoRequest(**{**data, **given, "sampling": _sampling(sampling) if sampling else None})


def _sampling(data: dict[str, Any]) -> SamplingOptions:
    nested = {name: TokenSampling(**value) for name, value in data.items() if isinstance(value, dict)}
    return SamplingOptions(**{**data, **nested})
