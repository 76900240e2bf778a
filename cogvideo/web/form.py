"""The form: values of a request as components, links and first frames contain them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cogvideo.config import Preset, SamplingOptions
from cogvideo.errors import RequestError
from cogvideo.request import VideoRequest
from cogvideo.token_frames import TokenFrames


@dataclass(frozen=True)
class Form:
    """The settings as a person sees them. `temperature` and `top_k` scale the preset's own values for both steps."""

    prompt: str = ""
    seed: int | None = None
    num_frames: int = 33
    duration: float = 4.0
    guidance_scale: float = 3.0
    temperature: float = 1.0
    top_k: int = 12
    superres: bool = True
    interpolation_seed: int | None = None
    """Seed of the frames between keyframes; None: `seed`."""
    start: TokenFrames | None = None
    """The first frame, where one is given."""

    @classmethod
    def default(cls, preset: Preset) -> Form:
        """What a new page shows: the preset's own options."""
        return cls(
            guidance_scale=preset.sampling.guidance_scale,
            top_k=preset.sampling.video.top_k,
            superres=preset.upscale_by_default,
        )

    def request(self, base: SamplingOptions) -> VideoRequest:
        """The request. `base`: the preset's options. Raises RequestError, also for a seed that is missing."""
        if self.seed is None:
            raise RequestError(
                "种子是空的：请输入一个整数，或勾选“每次换新种子”。",
                "The seed is empty: give a whole number, or tick “A new seed each time”.",
            )
        return VideoRequest(
            self.prompt,
            self.seed,
            self.num_frames,
            self.duration,
            self.superres,
            self._sampling(base),
            interpolation_seed=self.interpolation_seed,
            first_frame=self.start,
        )

    def _sampling(self, base: SamplingOptions) -> SamplingOptions | None:
        """None where nothing differs from the preset, so that the same wish is the same request."""
        if self == replace(self, guidance_scale=base.guidance_scale, temperature=1.0, top_k=base.video.top_k):
            return None
        scale = self.top_k / base.video.top_k
        first, video = (
            replace(token, temperature=token.temperature * self.temperature, top_k=max(1, round(token.top_k * scale)))
            for token in (base.first_frame, base.video)
        )
        return replace(base, first_frame=first, video=video, guidance_scale=self.guidance_scale)

    @classmethod
    def of(cls, request: VideoRequest, base: SamplingOptions) -> Form:
        """The inverse of `request`."""
        sampling = request.sampling or base
        return cls(
            request.prompt,
            request.seed,
            request.num_frames,
            request.duration,
            sampling.guidance_scale,
            round(sampling.video.temperature / base.video.temperature, 3),
            sampling.video.top_k,
            request.superres,
            request.interpolation_seed,
            request.first_frame,
        )

    def query(self, usual: Form) -> dict[str, str]:
        """The rarer settings as short names of a link, where they differ from the usual ones."""
        short = {"g": "guidance_scale", "t": "temperature", "k": "top_k"}
        query = {n: f"{getattr(self, f):g}" for n, f in short.items() if getattr(self, f) != getattr(usual, f)}
        if self.superres != usual.superres:
            query["sr"] = str(int(self.superres))
        if self.interpolation_seed is not None:
            query["b"] = str(self.interpolation_seed)
        return query

    @classmethod
    def from_query(cls, query: Mapping[str, str], usual: Form) -> Form | None:
        """The form that a link describes; None where it describes none. Raises RequestError for nonsense.

        `usual`: what holds for settings that the link does not name.
        """
        if "p" not in query:
            return None
        try:
            return cls(
                query["p"][:2000],
                int(query["s"]) if "s" in query else None,
                int(query.get("f", "33")),
                float(query.get("d", "4")),
                float(query.get("g", usual.guidance_scale)),
                float(query.get("t", "1")),
                int(query.get("k", usual.top_k)),
                query["sr"] != "0" if "sr" in query else usual.superres,
                int(query["b"]) if "b" in query else None,
            )
        except ValueError:
            raise RequestError(
                "种子、帧数、时长等应为数字：请检查链接是否完整。",
                "Seed, frames, length and so on should be numbers: check that the link is complete.",
            ) from None


def form_from_values(values: Sequence[Any], seed: int | None) -> Form:
    """The form from the components' values; `seed` replaces the one on the page. Raises RequestError."""
    prompt, typed, frames, seconds, guidance, temperature, top_k, superres, between, start = values
    return Form(
        str(prompt or ""),
        seed if seed is not None else None if typed is None else int(typed),
        int(frames or 0),
        float(seconds or 0),
        float(guidance),
        float(temperature),
        int(top_k),
        bool(superres),
        _whole(between),
        first_frame_from(start),
    )


def _whole(text: str | None) -> int | None:
    """A whole number that somebody typed, None for nothing. Raises RequestError."""
    try:
        return int(text) if text and text.strip() else None
    except ValueError:
        raise RequestError(
            f"中间帧的种子 {text} 不是整数：请输入 0 到 4294967295，或留空。",
            f"The seed of the in-betweens, {text}, is no whole number: give 0 to 4294967295, or leave it empty.",
        ) from None


def first_frame_value(first: TokenFrames, seen: str, given: str | None = None) -> dict[str, Any]:
    """What the page keeps of a first frame. `seen`: address of what the model sees, `given`: of the picture itself."""
    return {"packed": first.packed, "seen": seen, "given": given}


def first_frame_from(value: Any) -> TokenFrames | None:
    """The inverse of `start_value`, None where the page has no first frame. The model checks the tokens themselves."""
    packed = value.get("packed") if isinstance(value, dict) else None
    return TokenFrames(1, packed) if isinstance(packed, str) else None
