"""What the page shows, as plain data: words in two languages, a job as JSON, settings as a form or a link. No Gradio.

`app.py` hangs these on Gradio components; `assets/page/*.js` draws them.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cogvideo.config import ASSETS, CLIP_FRAMES, CLIP_SECONDS, Preset, SamplingOptions, VideoRequest
from cogvideo.errors import RequestError
from cogvideo.jobs.eta import tokens_per_stage
from cogvideo.jobs.state import View
from cogvideo.token_frames import TokenFrames

FOLDER = ASSETS / "page"

LANGUAGES = ("zh", "en")


class Words:
    """The page's sentences: key -> Chinese and English, with {names} to fill in."""

    def __init__(self, pairs: Mapping[str, list[str]]) -> None:
        self.pairs = dict(pairs)

    @classmethod
    def load(cls) -> Words:
        return cls(json.loads((FOLDER / "strings.json").read_text("utf-8")))

    def say(self, language: str, key: str, **values: object) -> str:
        """The sentence of `key`. Raises KeyError where there is none."""
        return self.pairs[key][language != "zh"].format(**values)


def preferred_language(accepted: str | None) -> str:
    """The page's language for a browser's Accept-Language header: "zh" for any kind of Chinese, else "en"."""
    first = (accepted or "zh").split(",")[0].strip().lower()
    return "zh" if first.startswith("zh") else "en"


def duration_words(words: Words, language: str, seconds: float) -> str:
    if seconds < 90:
        return words.say(language, "time_seconds", count=max(1, round(seconds)))
    return words.say(language, "time_minutes", count=round(seconds / 60))


def outcome(words: Words, language: str, frames: int, seconds: float, estimate: float | None) -> str:
    """What comes of the chosen frame rate and length, in one or two sentences."""
    rounds = CLIP_FRAMES.index(frames)
    key = ("outcome_keyframes", "outcome_one", "outcome_many")[min(rounds, 2)]
    said = [words.say(language, key, rounds=rounds, frames=frames, seconds=f"{seconds:g}")]
    if estimate is not None:
        said.append(words.say(language, "outcome_time", time=duration_words(words, language, estimate)))
    return ("" if language == "zh" else " ").join(said)


def reading_html(words: Words, language: str, pieces: Sequence[tuple[str, bool]], limit: int) -> str:
    """The pieces in which a prompt is read: unknown ones and those over the limit stand out."""
    marked = []
    for index, (piece, known) in enumerate(pieces):
        kind = "cut" if index >= limit else "" if known else "unknown"
        said = words.say(language, f"{kind}_piece") if kind else ""
        title = f' title="{html.escape(said)}"' if said else ""
        marked.append(f'<span data-kind="{kind}"{title}>{html.escape(piece.strip())}</span>')
    label = html.escape(words.say(language, "reading"))
    count = html.escape(words.say(language, "reading_hint", used=len(pieces), limit=limit))
    text = f'<span lang="zh-CN">{"".join(marked)}</span>'
    return f'<p class="cv-reading" tabindex="0"><b>{label}</b> <i>{count}</i> {text}</p>'


def unwritten_html(words: Words, language: str) -> str:
    """What helps before anything is written."""
    return f'<p class="cv-hint">{html.escape(words.say(language, "prompt_empty"))}</p>'


def unread_html(reason: str) -> str:
    """Why the model can read nothing of a prompt."""
    return f'<p class="cv-reading cv-unread">{html.escape(reason)}</p>'


def rate_choices(words: Words, language: str, seconds: float) -> list[tuple[str, int]]:
    """Frame rates that a clip of `seconds` can have, each with its number of frames."""
    return [(words.say(language, "rate_choice", rate=f"{(f - 1) / seconds:g}"), f) for f in CLIP_FRAMES]


def seconds_choices(words: Words, language: str) -> list[tuple[str, float]]:
    return [(words.say(language, "seconds_choice", seconds=f"{s:g}"), s) for s in CLIP_SECONDS]


@dataclass(frozen=True)
class Form:
    """The settings as a person sees them. `temperature` and `top_k` scale the preset's own values for both steps."""

    prompt: str = ""
    seed: int | None = None
    frames: int = 33
    seconds: float = 4.0
    guidance: float = 3.0
    temperature: float = 1.0
    top_k: int = 12
    superres: bool = True
    between: int | None = None
    """Seed of the frames between keyframes; None: `seed`."""
    start: TokenFrames | None = None
    """The first frame, where one is given."""

    @classmethod
    def usual(cls, preset: Preset) -> Form:
        """What a new page shows: the preset's own options."""
        return cls(guidance=preset.sampling.guidance, top_k=preset.sampling.video.top_k, superres=preset.enlarge)

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
            self.frames,
            self.seconds,
            self.superres,
            self._sampling(base),
            between_seed=self.between,
            first_frame=self.start,
        )

    def _sampling(self, base: SamplingOptions) -> SamplingOptions | None:
        """None where nothing differs from the preset, so that the same wish is the same request."""
        if self == replace(self, guidance=base.guidance, temperature=1.0, top_k=base.video.top_k):
            return None
        scale = self.top_k / base.video.top_k
        first, video = (
            replace(token, temperature=token.temperature * self.temperature, top_k=max(1, round(token.top_k * scale)))
            for token in (base.first_frame, base.video)
        )
        return replace(base, first_frame=first, video=video, guidance=self.guidance)

    @classmethod
    def of(cls, request: VideoRequest, base: SamplingOptions) -> Form:
        """The inverse of `request`."""
        sampling = request.sampling or base
        return cls(
            request.prompt,
            request.seed,
            request.frames,
            request.seconds,
            sampling.guidance,
            round(sampling.video.temperature / base.video.temperature, 3),
            sampling.video.top_k,
            request.superres,
            request.between_seed,
            request.first_frame,
        )

    def query(self, usual: Form) -> dict[str, str]:
        """The rarer settings as short names of a link, where they differ from the usual ones."""
        short = {"g": "guidance", "t": "temperature", "k": "top_k"}
        query = {n: f"{getattr(self, f):g}" for n, f in short.items() if getattr(self, f) != getattr(usual, f)}
        if self.superres != usual.superres:
            query["sr"] = str(int(self.superres))
        if self.between is not None:
            query["b"] = str(self.between)
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
                float(query.get("g", usual.guidance)),
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


def screen_value(view: View, preset: Preset, own: str) -> dict[str, Any]:
    """What the screen draws of a job, the same for everybody who looks. `own`: the model that links need not name."""
    request = view.request
    extra = Form.of(request, preset.sampling).query(Form.usual(preset))
    extra |= {"m": view.model} if view.model not in ("", own) else {}
    extra |= {"ff": "1"} if request.first_frame else {}
    return {
        "id": view.id,
        "status": view.status,
        "prompt": request.prompt,
        "seed": request.seed,
        "frames": request.frames,
        "seconds": request.seconds,
        "superres": request.superres,
        "rounds": request.rounds,
        "extra": extra,
        "model": view.model,
        "seeds": request.seeds,
        "drafts": request.drafts,
        "started": request.clip is not None,
        "parts": view.parts,
        "smaller": view.smaller,
        "keyframes": view.keyframes,
        "painting": view.painting,
        "level": view.level,
        "video": view.video,
        "strip": view.strip,
        "count": view.frames,
        "poster": view.poster,
        "stage": view.stage,
        "done": view.done,
        "total": view.total,
        "plan": tokens_per_stage(preset.model, request),
        "left": view.seconds_left,
        "place": view.place,
        "stopping": view.stopping,
        "error": view.error,
        "notes": view.notes,
    }


def card_value(view: View) -> dict[str, Any]:
    """What a card of the history draws of a job."""
    request = view.request
    return {
        "id": view.id,
        "status": view.status,
        "prompt": request.prompt,
        "seed": request.seed,
        "frames": request.frames,
        "seconds": request.seconds,
        "drafts": request.drafts,
        "poster": view.poster,
        "keyframes": view.keyframes[:1],
    }
