"""Strings of the page in Chinese and English."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence

from cogvideo.config import ASSETS, DURATIONS, FRAME_COUNTS

FOLDER = ASSETS / "web"

LANGUAGES = ("zh", "en")


class Strings:
    """The page's sentences: key -> Chinese and English, with {names} to fill in."""

    def __init__(self, pairs: Mapping[str, list[str]]) -> None:
        self.pairs = dict(pairs)

    @classmethod
    def load(cls) -> Strings:
        return cls(json.loads((FOLDER / "strings.json").read_text("utf-8")))

    def text(self, language: str, key: str, **values: object) -> str:
        """The sentence of `key`. Raises KeyError where there is none."""
        return self.pairs[key][language != "zh"].format(**values)


def preferred_language(accepted: str | None) -> str:
    """The page's language for a browser's Accept-Language header: "zh" for any kind of Chinese, else "en"."""
    first = (accepted or "zh").split(",")[0].strip().lower()
    return "zh" if first.startswith("zh") else "en"


def duration_words(words: Strings, language: str, seconds: float) -> str:
    if seconds < 90:
        return words.text(language, "time_seconds", count=max(1, round(seconds)))
    return words.text(language, "time_minutes", count=round(seconds / 60))


def outcome(words: Strings, language: str, frames: int, seconds: float, estimate: float | None) -> str:
    """What comes of the chosen frame rate and length, in one or two sentences."""
    rounds = FRAME_COUNTS.index(frames)
    key = ("outcome_keyframes", "outcome_one", "outcome_many")[min(rounds, 2)]
    said = [words.text(language, key, rounds=rounds, frames=frames, seconds=f"{seconds:g}")]
    if estimate is not None:
        said.append(words.text(language, "outcome_time", time=duration_words(words, language, estimate)))
    return ("" if language == "zh" else " ").join(said)


def reading_html(words: Strings, language: str, pieces: Sequence[tuple[str, bool]], limit: int) -> str:
    """The pieces in which a prompt is read: unknown ones and those over the limit stand out."""
    marked = []
    for index, (piece, known) in enumerate(pieces):
        kind = "cut" if index >= limit else "" if known else "unknown"
        said = words.text(language, f"{kind}_piece") if kind else ""
        title = f' title="{html.escape(said)}"' if said else ""
        marked.append(f'<span data-kind="{kind}"{title}>{html.escape(piece.strip())}</span>')
    label = html.escape(words.text(language, "reading"))
    count = html.escape(words.text(language, "reading_hint", used=len(pieces), limit=limit))
    text = f'<span lang="zh-CN">{"".join(marked)}</span>'
    return f'<p class="cv-reading" tabindex="0"><b>{label}</b> <i>{count}</i> {text}</p>'


def unwritten_html(words: Strings, language: str) -> str:
    """What helps before anything is written."""
    return f'<p class="cv-hint">{html.escape(words.text(language, "prompt_empty"))}</p>'


def unread_html(reason: str) -> str:
    """Why the model can read nothing of a prompt."""
    return f'<p class="cv-reading cv-unread">{html.escape(reason)}</p>'


def rate_choices(words: Strings, language: str, seconds: float) -> list[tuple[str, int]]:
    """Frame rates that a clip of `seconds` can have, each with its number of frames."""
    return [(words.text(language, "rate_choice", rate=f"{(f - 1) / seconds:g}"), f) for f in FRAME_COUNTS]


def seconds_choices(words: Strings, language: str) -> list[tuple[str, float]]:
    return [(words.text(language, "seconds_choice", seconds=f"{s:g}"), s) for s in DURATIONS]
