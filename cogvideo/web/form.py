"""The form's settings as plain data: from the page's fields or a link to a request, and back. No Gradio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cogvideo.config import Preset, SamplingOptions
from cogvideo.errors import RequestError
from cogvideo.messages import message
from cogvideo.request import VideoRequest, new_seed
from cogvideo.token_frames import TokenFrames
from cogvideo.web.form_fields import FormFields


@dataclass(frozen=True)
class Form:
    """The settings as the page shows them. `temperature` and `top_k` scale the preset's values of both steps."""

    prompt: str = ""
    seed: int | None = None
    num_frames: int = 33
    duration: float = 4.0
    guidance_scale: float = 3.0
    temperature: float = 1.0
    top_k: int = 12
    superres: bool = True
    interpolation_seed: int | None = None
    """Seed of stage 2; None: `seed`."""
    first_frame: TokenFrames | None = None
    """The given first frame, if any."""

    @classmethod
    def default(cls, preset: Preset) -> Form:
        """Return the settings of a new page: the preset's own."""
        return cls(
            guidance_scale=preset.sampling.guidance_scale,
            top_k=preset.sampling.video.top_k,
            superres=preset.upscale_by_default,
        )

    def request(self, base: SamplingOptions) -> VideoRequest:
        """Convert to a request. `base`: the preset's options. Raises RequestError, also if the seed is missing."""
        if self.seed is None:
            raise RequestError(*message("form.seed_empty"))
        return VideoRequest(
            self.prompt,
            self.seed,
            self.num_frames,
            self.duration,
            self.superres,
            self._sampling(base),
            interpolation_seed=self.interpolation_seed,
            first_frame=self.first_frame,
        )

    def _sampling(self, base: SamplingOptions) -> SamplingOptions | None:
        """Return None if nothing differs from the preset, so that equal settings give equal requests."""
        if self == replace(self, guidance_scale=base.guidance_scale, temperature=1.0, top_k=base.video.top_k):
            return None
        scale = self.top_k / base.video.top_k
        first, video = (
            replace(token, temperature=token.temperature * self.temperature, top_k=max(1, round(token.top_k * scale)))
            for token in (base.first_frame, base.video)
        )
        return replace(base, first_frame=first, video=video, guidance_scale=self.guidance_scale)

    @classmethod
    def from_request(cls, request: VideoRequest, base: SamplingOptions) -> Form:
        """Convert a request to the form: the inverse of `request`."""
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

    def query(self, default: Form) -> dict[str, str]:
        """Return the advanced settings that differ from `default`, under the short names used in links."""
        short = {"g": "guidance_scale", "t": "temperature", "k": "top_k"}
        query = {n: f"{getattr(self, f):g}" for n, f in short.items() if getattr(self, f) != getattr(default, f)}
        if self.superres != default.superres:
            query["sr"] = str(int(self.superres))
        if self.interpolation_seed is not None:
            query["b"] = str(self.interpolation_seed)
        return query

    @classmethod
    def from_query(cls, query: Mapping[str, str], default: Form) -> Form | None:
        """Read the form from a link; `default` fills settings that the link does not contain.

        Returns None if the link contains no prompt. Raises RequestError if a setting is not a number.
        """
        if "p" not in query:
            return None
        try:
            return cls(
                query["p"][:2000],
                int(query["s"]) if "s" in query else None,
                int(query.get("f", "33")),
                float(query.get("d", "4")),
                float(query.get("g", default.guidance_scale)),
                float(query.get("t", "1")),
                int(query.get("k", default.top_k)),
                query["sr"] != "0" if "sr" in query else default.superres,
                int(query["b"]) if "b" in query else None,
            )
        except ValueError:
            raise RequestError(*message("form.invalid_link_settings")) from None


def form_from_values(values: FormFields[Any], seed: int | None) -> Form:
    """Convert the values of the page's fields to a form. `seed` replaces the one on the page. Raises RequestError."""
    return Form(
        prompt=str(values.prompt or ""),
        seed=seed if seed is not None else None if values.seed is None else int(values.seed),
        num_frames=int(values.num_frames or 0),
        duration=float(values.duration or 0),
        guidance_scale=float(values.guidance_scale),
        temperature=float(values.temperature),
        top_k=int(values.top_k),
        superres=bool(values.superres),
        interpolation_seed=_optional_int(values.interpolation_seed),
        first_frame=first_frame_from(values.first_frame),
    )


def values_from_form(form: Form, first_frame: dict[str, Any] | None) -> FormFields[Any]:
    """Convert a form to the values of the page's fields. `first_frame`: as `first_frame_value` returns it."""
    return FormFields(
        prompt=form.prompt,
        seed=form.seed if form.seed is not None else new_seed(),
        num_frames=form.num_frames,
        duration=form.duration,
        guidance_scale=form.guidance_scale,
        temperature=form.temperature,
        top_k=form.top_k,
        superres=form.superres,
        interpolation_seed="" if form.interpolation_seed is None else str(form.interpolation_seed),
        first_frame=first_frame,
    )


def _optional_int(text: str | None) -> int | None:
    """Convert the text of an optional seed. Raises RequestError."""
    try:
        return int(text) if text and text.strip() else None
    except ValueError:
        raise RequestError(*message("form.invalid_in_between_seed", text=text)) from None


def first_frame_value(first: TokenFrames, seen: str, given: str | None = None) -> dict[str, Any]:
    """Return the page's value of a first frame. `seen`, `given`: addresses of the decoded and the original image."""
    return {"packed": first.packed, "seen": seen, "given": given}


def first_frame_from(value: Any) -> TokenFrames | None:
    """Read the page's value of a first frame, the inverse of `first_frame_value`. The tokens are not checked.

    Returns None if the page has no first frame.
    """
    packed = value.get("packed") if isinstance(value, dict) else None
    return TokenFrames(1, packed) if isinstance(packed, str) else None
