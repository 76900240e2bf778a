"""The page's texts in two languages, and the small HTML fragments made of them. No Gradio."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from cogvideo.config import ASSETS, DURATIONS, FRAME_COUNTS
from cogvideo.messages import sentences
from cogvideo.web.form import Form
from cogvideo.web.spaces import duplicate_link

FOLDER = ASSETS / "web"

LANGUAGES = ("zh", "en")


class Strings:
    """The page's texts: key -> Chinese and English, with {names} as placeholders."""

    def __init__(self, pairs: Mapping[str, list[str]]) -> None:
        self.pairs = dict(pairs)

    @classmethod
    def load(cls) -> Strings:
        return cls(sentences("page"))

    def text(self, language: str, key: str, **values: object) -> str:
        """Return the text of `key`. Raises KeyError if there is none."""
        return self.pairs[key][language != "zh"].format(**values)


def preferred_language(accepted: str | None) -> str:
    """Return the language for an Accept-Language header: "zh" for any variant of Chinese, else "en"."""
    first = (accepted or "zh").split(",")[0].strip().lower()
    return "zh" if first.startswith("zh") else "en"


def format_duration(strings: Strings, language: str, seconds: float) -> str:
    if seconds < 90:
        return strings.text(language, "time_seconds", count=max(1, round(seconds)))
    return strings.text(language, "time_minutes", count=round(seconds / 60))


def outcome_text(strings: Strings, language: str, frames: int, seconds: float, estimate: float | None) -> str:
    """Describe the result of the chosen frame rate and length, and its estimated time in seconds."""
    rounds = FRAME_COUNTS.index(frames)
    key = ("outcome_keyframes", "outcome_one", "outcome_many")[min(rounds, 2)]
    sentences = [strings.text(language, key, rounds=rounds, frames=frames, seconds=f"{seconds:g}")]
    if estimate is not None:
        sentences.append(strings.text(language, "outcome_time", time=format_duration(strings, language, estimate)))
    return ("" if language == "zh" else " ").join(sentences)


def tokenized_prompt_html(strings: Strings, language: str, pieces: Sequence[tuple[str, bool]], limit: int) -> str:
    """Show the tokens of a prompt; unknown ones and those over the limit are marked."""
    marked = []
    for index, (piece, known) in enumerate(pieces):
        kind = "cut" if index >= limit else "" if known else "unknown"
        hint = strings.text(language, f"{kind}_piece") if kind else ""
        title = f' title="{html.escape(hint)}"' if hint else ""
        marked.append(f'<span data-kind="{kind}"{title}>{html.escape(piece.strip())}</span>')
    label = html.escape(strings.text(language, "reading"))
    count = html.escape(strings.text(language, "reading_hint", used=len(pieces), limit=limit))
    text = f'<span lang="zh-CN">{"".join(marked)}</span>'
    return f'<p class="cv-reading" tabindex="0"><b>{label}</b> <i>{count}</i> {text}</p>'


def prompt_hint_html(strings: Strings, language: str) -> str:
    """Show the hint for an empty prompt."""
    return f'<p class="cv-hint">{html.escape(strings.text(language, "prompt_empty"))}</p>'


def prompt_error_html(reason: str) -> str:
    """Show why a prompt cannot be tokenized."""
    return f'<p class="cv-reading cv-unread">{html.escape(reason)}</p>'


def rate_choices(strings: Strings, language: str, seconds: float) -> list[tuple[str, int]]:
    """Return the frame rates of a video of `seconds`, each with its number of frames."""
    return [(strings.text(language, "rate_choice", rate=f"{(f - 1) / seconds:g}"), f) for f in FRAME_COUNTS]


def seconds_choices(strings: Strings, language: str) -> list[tuple[str, float]]:
    return [(strings.text(language, "seconds_choice", seconds=f"{s:g}"), s) for s in DURATIONS]


def notice_html(text: str, kind: str = "") -> str:
    """Show a message below the buttons, announced to screen readers. Escapes the text."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="cv-say" role="{role}" data-kind="{kind}">{html.escape(text)}</p>' if text else ""


def outcome_html(strings: Strings, language: str, form: Form, estimate: float | None, queued: int = 0) -> str:
    """Show the result of the chosen frame rate and length, its estimated time, and the number of jobs ahead."""
    text = outcome_text(strings, language, form.num_frames, form.duration, estimate)
    if queued:
        text += ("" if language == "zh" else " ") + strings.text(language, "busy", count=queued)
    return f"<p>{html.escape(text)}</p>"


def brand_html(strings: Strings, language: str) -> str:
    title, tagline = strings.text(language, "title"), strings.text(language, "tagline")
    return f'<div class="cv-brand">{asset("favicon.svg")}<div><h1>{title}</h1><p>{tagline}</p></div></div>'


def footer_markdown(strings: Strings, language: str) -> str:
    text, link = strings.text(language, "footer"), duplicate_link()
    return f"{text} · [{strings.text(language, 'duplicate')}]({link})" if link else text


def asset(name: str) -> str:
    """Return the text of a file in `assets/web`."""
    return (FOLDER / name).read_text("utf-8")
