"""The Gradio components of the page, created in the order in which they appear."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from cogvideo.config import MAX_GUIDANCE
from cogvideo.jobs.log_entries import JsonObject
from cogvideo.jobs.model_registry import ModelEntry
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from cogvideo.web.form import Form
from cogvideo.web.form_fields import EstimateFields, FormFields, SubmitFields
from cogvideo.web.model_options import ModelPlacement, model_choices, model_note
from cogvideo.web.spaces import share_base
from cogvideo.web.strings import (
    FOLDER,
    Strings,
    asset,
    brand_html,
    footer_markdown,
    outcome_html,
    prompt_hint_html,
    rate_choices,
    seconds_choices,
)

SCRIPT_PARTS = {"screen": ("screen_film", "screen_words", "screen_watch")}
"""Additional scripts of a component, in load order."""


@dataclass(frozen=True)
class FormContext:
    """Language, model and model placement that labels and choices depend on."""

    language: str
    model: ModelEntry
    placement: ModelPlacement | None = None
    """None: the page offers no memory presets."""


class Components:
    """All components, in Chinese and with the default model. Created within `gr.Blocks`."""

    def __init__(
        self, strings: Strings, models: Sequence[ModelEntry], gallery: Sequence[JsonObject], browser_secret: str
    ) -> None:
        self._strings, self._models = strings, models
        self._zh = {key: strings.text("zh", key) for key in strings.pairs if "{" not in strings.pairs[key][0]}
        self._context = FormContext("zh", models[0])
        self._default = Form.default(models[0].preset)
        self.session = gr.BrowserState(None, storage_key="cogvideo", secret=browser_secret)
        self._build_header()
        with gr.Row(elem_id="cv-main"):
            with gr.Column(scale=5, min_width=320, elem_id="cv-form"):
                self._build_prompt()
                with gr.Column(elem_id="cv-options"):
                    self._build_length_and_seed()
                    self._build_image_and_phrases()
                    self._build_settings()
            with gr.Column(scale=7, min_width=320, elem_id="cv-stagecolumn"):
                self.screen = script_html(
                    "screen", None, "cv-screen", words=strings.pairs, share_base=share_base(), gallery=gallery
                )
        self.shelf = script_html("shelf", [], "cv-shelf", gallery=gallery)
        self.footer = gr.Markdown(footer_markdown(strings, "zh"), elem_id="cv-foot")
        self._group_fields()

    def _group_fields(self) -> None:
        described: dict[str, Any] = {
            "prompt": self.prompt,
            "seed": self.seed,
            "num_frames": self.num_frames,
            "duration": self.duration,
            "guidance_scale": self.guidance_scale,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "superres": self.superres,
            "interpolation_seed": self.interpolation_seed,
            "first_frame": self.first_frame,
        }
        self.form: FormFields[Any] = FormFields(**described)
        self.submission: SubmitFields[Any] = SubmitFields(
            **described,
            model=self.model,
            memory=self.memory,
            random_seed=self.random_seed,
            embed_settings=self.embed_settings,
        )
        self.estimate: EstimateFields[Any] = EstimateFields(
            num_frames=self.num_frames,
            duration=self.duration,
            superres=self.superres,
            model=self.model,
            memory=self.memory,
        )

    def _build_header(self) -> None:
        with gr.Row(elem_id="cv-top"):
            self.brand = gr.HTML(brand_html(self._strings, "zh"), apply_default_css=False)
            self.language = gr.Radio(
                [("中文", "zh"), ("English", "en")],
                value="zh",
                label=self._zh["language"],
                show_label=False,
                container=False,
                elem_id="cv-language",
            )

    def _build_prompt(self) -> None:
        zh = self._zh
        examples = json.loads(asset("examples.json"))
        with gr.Column(elem_id="cv-wish"):
            self.prompt = gr.Textbox(
                label=zh["prompt"], placeholder=zh["prompt_hint"], lines=2, max_lines=5, elem_id="cv-prompt"
            )
            self.tokenized_prompt = gr.HTML(
                prompt_hint_html(self._strings, "zh"), apply_default_css=False, elem_id="cv-reading"
            )
            self.examples = script_html("chips", [[None, examples]], "cv-chips")
            self.first_frame = script_html("start", None, "cv-begin")
            with gr.Row(elem_id="cv-makerow"):
                self.submit_button = gr.Button(zh["make"], variant="primary", elem_id="cv-make", scale=3, min_width=160)
                self.drafts_button = gr.Button(zh["drafts"], elem_id="cv-drafts", scale=2, min_width=130)
            self.notice = gr.HTML("", apply_default_css=False, elem_id="cv-notice")

    def _build_length_and_seed(self) -> None:
        zh, default = self._zh, self._default
        with gr.Group():
            self.duration = gr.Radio(
                seconds_choices(self._strings, "zh"),
                value=default.duration,
                label=zh["seconds"],
                elem_id="cv-seconds",
            )
            self.num_frames = gr.Radio(
                rate_choices(self._strings, "zh", default.duration),
                value=default.num_frames,
                label=zh["rate"],
                elem_id="cv-rate",
            )
        outcome = outcome_html(self._strings, "zh", default, None)
        self.outcome = gr.HTML(outcome, apply_default_css=False, elem_id="cv-outcome")
        with gr.Group():
            self.seed = gr.Number(label=zh["seed"], info=zh["seed_hint"], precision=0, elem_id="cv-seed")
            self.random_seed = gr.Checkbox(value=True, label=zh["fresh"], elem_id="cv-fresh")

    def _build_image_and_phrases(self) -> None:
        zh = self._zh
        with gr.Accordion(zh["start"], open=False, elem_id="cv-start") as self.image_section:
            self.image = gr.File(
                label=zh["start"], file_types=["image"], height=110, show_label=False, elem_id="cv-picture"
            )
        with gr.Accordion(zh["phrases"], open=False, elem_id="cv-phrases") as self.phrases_section:
            self.phrases = script_html("chips", json.loads(asset("phrases.json")), None)

    def _build_settings(self) -> None:
        zh, default = self._zh, self._default
        with gr.Accordion(zh["settings"], open=False, elem_id="cv-settings") as self.settings_section:
            self._build_model()
            self.guidance_scale = gr.Slider(
                1, MAX_GUIDANCE / 2, default.guidance_scale, step=0.5, label=zh["guidance"], info=zh["guidance_hint"]
            )
            self.temperature = gr.Slider(
                0.5, 1.5, default.temperature, step=0.05, label=zh["temperature"], info=zh["temperature_hint"]
            )
            self.top_k = gr.Slider(1, 40, default.top_k, step=1, label=zh["top_k"], info=zh["top_k_hint"])
            self.interpolation_seed = gr.Textbox(  # a Number cannot be empty: it shows and sends 0
                label=zh["between_seed"], info=zh["between_hint"], max_lines=1, elem_id="cv-between"
            )
            self.superres = gr.Checkbox(value=default.superres, label=zh["superres"])
            self.embed_settings = gr.Checkbox(value=True, label=zh["comment"])
            self.settings_file = gr.File(label=zh["file"], file_types=[".mp4", ".gif"], height=140, elem_id="cv-file")

    def _build_model(self) -> None:
        self.model = gr.Radio(
            model_choices(self._strings, "zh", self._models),
            value=self._context.model.name,
            label=self._zh["model"],
            visible=len(self._models) > 1,
            elem_id="cv-model",
        )
        note = model_note(self._strings, "zh", self._context.model)
        self.model_note = gr.HTML(note, apply_default_css=False, elem_id="cv-about")
        self.memory = gr.Radio(
            ["", *MEMORY_PRESETS],  # Gradio rejects values outside the initial choices
            value="",
            label=self._zh["memory"],
            info=self._zh["memory_hint"],
            visible=False,
            elem_id="cv-memory",
        )


def script_html(name: str, value: Any, elem_id: str | None, **props: Any) -> gr.HTML:
    """Create a component that is rendered by assets/web/NAME.js and its SCRIPT_PARTS, in NAME.html if it exists."""
    template = FOLDER / f"{name}.html"
    return gr.HTML(
        value,
        html_template=template.read_text("utf-8") if template.is_file() else "<div></div>",
        js_on_load="\n".join(asset(f"{part}.js") for part in (name, *SCRIPT_PARTS.get(name, ()))),
        apply_default_css=False,
        elem_id=elem_id,
        **props,
    )
