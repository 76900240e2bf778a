"""What stands on the page: Gradio components in their places, and what they become when something changes.

In: words, presets, forms. Out: components, and updates for them. Nothing here knows a job.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from cogvideo.config import MAX_GUIDANCE, Preset
from cogvideo.jobs.model_registry import ModelEntry
from cogvideo.request import new_seed
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from cogvideo.web import strings as web_form
from cogvideo.web.form import Form
from cogvideo.web.model_options import Held, memory_choices, model_choices, model_note
from cogvideo.web.spaces import duplicate_link, share_base
from cogvideo.web.strings import FOLDER, Strings

PARTS = {"screen": ("screen_film", "screen_words", "screen_watch")}
"""Scripts that are several files, in their order."""
Updates = dict[Any, Any]
"""Gradio components and what they change to."""


@dataclass(frozen=True)
class FormContext:
    """What a visitor sees the form for."""

    language: str
    offer: ModelEntry
    held: Held | None = None
    """How the model is held in memory, where that is worth a choice."""


class Components:
    """All components. Made within `gr.Blocks`, where they appear in the order of these methods."""

    def __init__(
        self, words: Strings, offers: Sequence[ModelEntry], gallery: Sequence[dict[str, Any]], browser_secret: str
    ) -> None:
        self.words, self.offers = words, offers
        self.zh = {key: words.text("zh", key) for key in words.pairs if "{" not in words.pairs[key][0]}
        first = FormContext("zh", offers[0])
        self.session = gr.BrowserState(None, storage_key="cogvideo", secret=browser_secret)
        self._build_top()
        with gr.Row(elem_id="cv-main"):
            with gr.Column(scale=5, min_width=320, elem_id="cv-form"):
                self._build_wish()
                with gr.Column(elem_id="cv-options"):
                    self._build_shape(first)
                    self._build_start_and_phrases()
                    self._build_settings(first)
            with gr.Column(scale=7, min_width=320, elem_id="cv-stagecolumn"):
                self.screen = drawn_html(
                    "screen", None, "cv-screen", words=words.pairs, share_base=share_base(), gallery=gallery
                )
        self.shelf = drawn_html("shelf", [], "cv-shelf", gallery=gallery)
        self.foot = gr.Markdown(self._foot("zh"), elem_id="cv-foot")
        self.form = [
            *(self.prompt, self.seed, self.frames, self.seconds, self.guidance, self.temperature, self.top_k),
            *(self.superres, self.between, self.begin),
        ]
        """Where a `Form` stands, in its order."""
        self.translated = list(self.translate_labels(first))
        """What `clothes` changes."""

    # The page from top to bottom.

    def _build_top(self) -> None:
        with gr.Row(elem_id="cv-top"):
            self.brand = gr.HTML(self._brand("zh"), apply_default_css=False)
            self.language = gr.Radio(
                [("中文", "zh"), ("English", "en")],
                value="zh",
                label=self.zh["language"],
                show_label=False,
                container=False,
                elem_id="cv-language",
            )

    def _build_wish(self) -> None:
        """The sentence, what the model reads of it, and the buttons."""
        zh = self.zh
        examples = json.loads(asset("examples.json"))
        with gr.Column(elem_id="cv-wish"):
            self.prompt = gr.Textbox(
                label=zh["prompt"], placeholder=zh["prompt_hint"], lines=2, max_lines=5, elem_id="cv-prompt"
            )
            self.reading = gr.HTML(
                web_form.unwritten_html(self.words, "zh"), apply_default_css=False, elem_id="cv-reading"
            )
            self.chips = drawn_html("chips", [[None, examples]], "cv-chips")
            self.begin = drawn_html("start", None, "cv-begin")
            with gr.Row(elem_id="cv-makerow"):
                self.make = gr.Button(zh["make"], variant="primary", elem_id="cv-make", scale=3, min_width=160)
                self.drafts = gr.Button(zh["drafts"], elem_id="cv-drafts", scale=2, min_width=130)
            self.notice = gr.HTML("", apply_default_css=False, elem_id="cv-notice")

    def _build_shape(self, first: FormContext) -> None:
        """Length, frame rate and seed."""
        zh, usual = self.zh, Form.default(first.offer.preset)
        with gr.Group():
            self.seconds = gr.Radio(
                web_form.seconds_choices(self.words, "zh"),
                value=usual.duration,
                label=zh["seconds"],
                elem_id="cv-seconds",
            )
            self.frames = gr.Radio(
                web_form.rate_choices(self.words, "zh", usual.duration),
                value=usual.num_frames,
                label=zh["rate"],
                elem_id="cv-rate",
            )
        said = outcome_html(self.words, "zh", usual, None)
        self.outcome = gr.HTML(said, apply_default_css=False, elem_id="cv-outcome")
        with gr.Group():
            self.seed = gr.Number(label=zh["seed"], info=zh["seed_hint"], precision=0, elem_id="cv-seed")
            self.fresh = gr.Checkbox(value=True, label=zh["fresh"], elem_id="cv-fresh")

    def _build_start_and_phrases(self) -> None:
        zh = self.zh
        with gr.Accordion(zh["start"], open=False, elem_id="cv-start") as self.starting:
            self.picture = gr.File(
                label=zh["start"], file_types=["image"], height=110, show_label=False, elem_id="cv-picture"
            )
        with gr.Accordion(zh["phrases"], open=False, elem_id="cv-phrases") as self.bank:
            self.phrases = drawn_html("chips", json.loads(asset("phrases.json")), None)

    def _build_settings(self, first: FormContext) -> None:
        """What most people never touch."""
        zh, usual = self.zh, Form.default(first.offer.preset)
        with gr.Accordion(zh["settings"], open=False, elem_id="cv-settings") as self.settings:
            self._build_model(first)
            self.guidance = gr.Slider(
                1, MAX_GUIDANCE / 2, usual.guidance_scale, step=0.5, label=zh["guidance"], info=zh["guidance_hint"]
            )
            self.temperature = gr.Slider(
                0.5, 1.5, usual.temperature, step=0.05, label=zh["temperature"], info=zh["temperature_hint"]
            )
            self.top_k = gr.Slider(1, 40, usual.top_k, step=1, label=zh["top_k"], info=zh["top_k_hint"])
            self.between = gr.Textbox(  # a Number cannot be empty: it shows and sends 0
                label=zh["between_seed"], info=zh["between_hint"], max_lines=1, elem_id="cv-between"
            )
            self.superres = gr.Checkbox(value=usual.superres, label=zh["superres"])
            self.comment = gr.Checkbox(value=True, label=zh["comment"])
            self.file = gr.File(label=zh["file"], file_types=[".mp4", ".gif"], height=140, elem_id="cv-file")

    def _build_model(self, first: FormContext) -> None:
        self.model = gr.Radio(
            model_choices(self.words, "zh", self.offers),
            value=first.offer.name,
            label=self.zh["model"],
            visible=len(self.offers) > 1,
            elem_id="cv-model",
        )
        self.about = gr.HTML(self._about(first), apply_default_css=False, elem_id="cv-about")
        self.memory = gr.Radio(
            ["", *MEMORY_PRESETS],  # all that it may ever hold: Gradio refuses anything else
            value="",
            label=self.zh["memory"],
            info=self.zh["memory_hint"],
            visible=False,
            elem_id="cv-memory",
        )

    # What they become.

    @property
    def filled(self) -> list[Any]:
        """What `fill` changes, and the notice beside it."""
        return [*self.form, self.model, self.about, self.memory, self.fresh, self.outcome, self.notice]

    def fill(self, form: Form, chosen: FormContext, start: dict[str, Any] | None) -> Updates:
        """The form's values on the page. `start`: its first frame as the page shows it."""
        values = [form.prompt, form.seed if form.seed is not None else new_seed(), form.num_frames, form.duration]
        values += [form.guidance_scale, form.temperature, form.top_k, form.superres]
        values += ["" if form.interpolation_seed is None else str(form.interpolation_seed), start]
        updates: Updates = {part: gr.update(value=value) for part, value in zip(self.form, values, strict=True)}
        updates |= {self.fresh: gr.update(value=form.seed is None), self.model: gr.update(value=chosen.offer.name)}
        return {**updates, **self.about_model(chosen)}

    def defaults(self, preset: Preset) -> Updates:
        """The settings that each model has its own of."""
        form = Form.default(preset)
        values = (form.guidance_scale, form.temperature, form.top_k, form.superres)
        return dict(zip((self.guidance, self.temperature, self.top_k, self.superres), values, strict=True))

    def rates(self, form: Form, language: str, estimate: float | None, waiting: int = 0) -> Updates:
        """Frame rates of the chosen length, and what comes of it. `waiting`: jobs before this one."""
        choices = web_form.rate_choices(self.words, language, form.duration)
        said = outcome_html(self.words, language, form, estimate, waiting)
        return {self.frames: gr.update(choices=choices), self.outcome: said}

    def about_model(self, chosen: FormContext) -> Updates:
        """What is to be known of a model, and how it may be held in memory."""
        choices = memory_choices(self.words, chosen.language, chosen.held) if chosen.held else []
        shown = gr.update(choices=choices, value="", visible=True) if choices else gr.update(value="", visible=False)
        return {self.about: self._about(chosen), self.memory: shown}

    def translate_labels(self, chosen: FormContext) -> Updates:
        """Every label in the language."""
        language, words = chosen.language, self.words

        def label(key: str, info: str | None = None) -> Any:
            said = {"label": words.text(language, key)}
            return {**gr.update(), **said, **({"info": words.text(language, info)} if info else {})}

        plain = (
            *((self.language, "language"), (self.starting, "start"), (self.picture, "start"), (self.frames, "rate")),
            *((self.fresh, "fresh"), (self.settings, "settings"), (self.bank, "phrases")),
            *((self.superres, "superres"), (self.comment, "comment"), (self.file, "file")),
        )
        explained = (
            *((self.between, "between_seed", "between_hint"), (self.seed, "seed", "seed_hint")),
            *((self.guidance, "guidance", "guidance_hint"), (self.temperature, "temperature", "temperature_hint")),
            (self.top_k, "top_k", "top_k_hint"),
        )
        memory = {**label("memory", "memory_hint"), **self.about_model(chosen)[self.memory]}
        return {
            **{part: label(key) for part, key in plain},
            **{part: label(key, hint) for part, key, hint in explained},
            self.brand: self._brand(language),
            self.foot: self._foot(language),
            self.prompt: gr.update(
                label=words.text(language, "prompt"), placeholder=words.text(language, "prompt_hint")
            ),
            self.make: words.text(language, "make"),
            self.drafts: words.text(language, "drafts"),
            self.model: {**label("model"), "choices": model_choices(words, language, self.offers)},
            self.about: self._about(chosen),
            self.memory: memory,
            self.seconds: {**label("seconds"), "choices": web_form.seconds_choices(words, language)},
        }

    def _about(self, chosen: FormContext) -> str:
        return model_note(self.words, chosen.language, chosen.offer)

    def _foot(self, language: str) -> str:
        said, link = self.words.text(language, "footer"), duplicate_link()
        return f"{said} · [{self.words.text(language, 'duplicate')}]({link})" if link else said

    def _brand(self, language: str) -> str:
        title, tagline = self.words.text(language, "title"), self.words.text(language, "tagline")
        return f'<div class="cv-brand">{asset("favicon.svg")}<div><h1>{title}</h1><p>{tagline}</p></div></div>'


def notice_html(words: str, kind: str = "") -> str:
    """A sentence below the button; read out at once. Whatever it quotes is shown as text."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="cv-say" role="{role}" data-kind="{kind}">{html.escape(words)}</p>' if words else ""


def outcome_html(words: Strings, language: str, form: Form, estimate: float | None, waiting: int = 0) -> str:
    """What comes of the chosen frame rate and length, how long it takes, and how many wait for the same server."""
    said = web_form.outcome(words, language, form.num_frames, form.duration, estimate)
    if waiting:
        said += ("" if language == "zh" else " ") + words.text(language, "busy", count=waiting)
    return f"<p>{html.escape(said)}</p>"


def merged(first: Updates, second: Updates) -> Updates:
    """Both updates; where both change the same component, all that either says about it."""
    both = dict(first)
    for part, update in second.items():
        again = isinstance(update, dict) and isinstance(both.get(part), dict)
        both[part] = {**both[part], **update} if again else update
    return both


def drawn_html(name: str, value: Any, elem_id: str | None, **props: Any) -> gr.HTML:
    """A component that assets/web/NAME.js draws, with its PARTS, within NAME.html where there is one."""
    template = FOLDER / f"{name}.html"
    return gr.HTML(
        value,
        html_template=template.read_text("utf-8") if template.is_file() else "<div></div>",
        js_on_load="\n".join(asset(f"{part}.js") for part in (name, *PARTS.get(name, ()))),
        apply_default_css=False,
        elem_id=elem_id,
        **props,
    )


def asset(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")
